"""Captions of the corpus, the tokenizer and the text encoders."""

import random

import pytest
import torch

from b4m_pipeline.pretrain.params import CaptionParams, TextParams
from b4m_pipeline.pretrain.text import (
    Captioner,
    alias_of,
    caption_corpus,
    encode,
    make_text_encoders,
    standard_caption,
    tokenize,
    train_tokenizer,
)

PLACEHOLDERS = ["snq", "w@z"]


ALL = CaptionParams(**dict.fromkeys(CaptionParams.model_fields, 0.0))


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (None, {"a cat emoji in noto style"}),
        ("no_style", {"a cat emoji"}),
        ("no_content", {"an emoji in noto style"}),
        ("placeholder_content", {"a snq emoji in noto style", "a w@z emoji in noto style"}),
        ("placeholder_style", {"a cat emoji in snq style", "a cat emoji in w@z style"}),
        ("placeholder_both", {"a snq emoji in w@z style", "a w@z emoji in snq style"}),
        ("keyword", {"a cat pet emoji in noto style"}),
        ("alias", {f"a {alias_of('cat')} emoji in noto style"}),
    ],
)
def test_captions_say_what_their_form_says(share, expected) -> None:
    params = ALL.model_copy(update={share: 1.0} if share else {})
    captioner, rng = Captioner(params, PLACEHOLDERS), random.Random(0)
    assert {captioner(rng, "cat", "noto", "pet", "") for _ in range(40)} == expected
    assert captioner(rng, "cat", "noto", "pet", "red").endswith(" on a red background")
    assert captioner(rng, "cat", "noto", "pet", "small").endswith(", small")


def test_tokenizer_knows_every_byte_and_encoders_take_its_ids() -> None:
    params = TextParams(vocabulary=700, max_length=16, widths=(16, 32), layers=(2, 2), placeholders=PLACEHOLDERS)
    tokenizer = train_tokenizer([standard_caption("cat", "noto")] * 50, params)
    text = tokenizer.decode(tokenizer("ein 🐧 für w@z").input_ids, skip_special_tokens=True)
    assert text.replace(" ", "") == "ein🐧fürw@z"
    assert len(tokenizer("cat").input_ids) == 3
    encoders = make_text_encoders(params, tokenizer)
    embeds, pooled = encode(encoders, tokenize(tokenizer, ["a cat", "a penguin in noto style"]))
    assert embeds.shape == (2, 16, 48) and pooled.shape == (2, 32)
    assert abs(float(pooled.mean())) < 0.1 and abs(float(pooled.std()) - 1) < 0.2  # layer-normalised
    assert not encoders[1].text_projection.weight.requires_grad


def test_an_invented_word_is_always_the_same_and_seldom_anothers() -> None:
    names = [f"thing number {index}" for index in range(200)]
    aliases = [alias_of(name) for name in names]
    assert aliases == [alias_of(name) for name in names] and len(set(aliases)) > 190
    assert all(2 < len(alias) < 12 and alias.isalpha() for alias in aliases)


def test_the_standard_caption_says_what_it_is_given() -> None:
    assert standard_caption("owl") == "an owl emoji"
    assert standard_caption("owl", "noto") == "an owl emoji in noto style"
    assert standard_caption("red apple", "noto", "orange") == "a red apple emoji in noto style on an orange background"


def test_captions_of_a_corpus_follow_from_the_seed(drawings) -> None:
    captions = [caption_corpus(drawings.table, CaptionParams(), PLACEHOLDERS, seed) for seed in (0, 0, 1)]
    assert len(captions[0]) == len(drawings.table) and captions[0] == captions[1] != captions[2]


def test_encoders_give_their_last_hidden_states_but_one(tokenizer) -> None:
    """As SDXL's pipeline reads them."""
    params = TextParams(vocabulary=700, max_length=16, widths=(16, 32), layers=(2, 2), placeholders=PLACEHOLDERS)
    first, second = make_text_encoders(params, tokenizer)
    ids = tokenize(tokenizer, ["a cat", "word " * 40])
    assert ids.shape == (2, 16)  # padded and cut
    with torch.no_grad():
        embeds, pooled = encode((first, second), ids)
        whole = second(ids, output_hidden_states=True)
    assert torch.equal(embeds[..., 16:], whole.hidden_states[-2]) and torch.equal(pooled, whole.text_embeds)
    assert torch.equal(second.text_projection.weight, torch.eye(32))
