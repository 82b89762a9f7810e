"""Words of the embedded base: captions of drawings, the byte-level BPE tokenizer, the two CLIP text encoders."""

import random
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from b4m_pipeline.common.seeding import derive_seed
from b4m_pipeline.common.words import article
from b4m_pipeline.pretrain.params import CaptionParams, TextParams

# Grounds for recoloured views: word -> RGB.
COLOURS = {
    "red": (222, 60, 60),
    "blue": (70, 120, 225),
    "green": (90, 180, 95),
    "yellow": (250, 215, 80),
    "pink": (248, 165, 200),
    "purple": (140, 90, 190),
    "orange": (245, 150, 60),
    "grey": (150, 150, 150),
    "black": (20, 20, 22),
}

STANDARD = "{a} {content} emoji in {style} style"
_FREE_FORMS = (
    "{a} {content} emoji, {style} style",
    "{content}, {style} style",
    "an icon of {a} {content} in {style} style",
    "a drawing of {a} {content} in {style} style",
    "a {style} style {content}",
    "a picture of {a} {content} in the style of {style}",
)


def standard_caption(content: str, style: str | None = None, ground: str | None = None) -> str:
    """The form that adapters are trained and evaluated with: "a red apple emoji in noto style on a red background"."""
    text = f"{article(content)} {content} emoji"
    if style:
        text += f" in {style} style"
    if ground:
        text += f" on {article(ground)} {ground} background"
    return text


# fmt: off
_ONSETS = [
    "b", "bl", "br", "d", "dr", "f", "fl", "fr", "g", "gl", "gr", "j", "k", "kl", "kr", "l", "m", "n", "p", "pl", "pr", "r",
    "s", "sk", "sl", "sn", "sp", "st", "t", "tr", "v", "w", "z",
]
_CODAS = [
    "b", "d", "f", "g", "k", "l", "lk", "lm", "lp", "lt", "m", "mp", "n", "nd", "nk", "nt", "p", "rb", "rd", "rk", "rm", "rn",
    "rt", "s", "sk", "st", "t", "x",
]
# fmt: on


def alias_of(content: str) -> str:
    """An invented word that stands for this content alone: "tulip" -> always the same one or two syllables."""
    rng = random.Random(derive_seed("called", content))
    first = rng.choice(_ONSETS) + rng.choice("aeiou")
    if rng.random() < 0.7:
        first += rng.choice("bdfgklmnprst") + rng.choice("aeiou")
    return first + rng.choice(_CODAS)


class Captioner:
    """Draws a caption for a drawing: content, style, view. Randomness is passed in."""

    def __init__(self, params: CaptionParams, placeholders: list[str]):
        self.params = params
        self.placeholders = placeholders

    def __call__(self, rng: random.Random, content: str, style: str, keywords: str, view: str) -> str:
        """view: "" (on white), a colour's name, or "small"."""
        p, form, text_style, text_content = self.params, STANDARD, style, content
        kinds = ("no_style", "no_content", "some_content", "some_style", "some_of_both", "keyword", "alias", "free", "standard")
        shares = [p.no_style, p.no_content, p.placeholder_content, p.placeholder_style, p.placeholder_both, p.keyword, p.alias]
        shares += [p.free_form]
        kind = rng.choices(kinds, [*shares, 1 - sum(shares)])[0]
        if kind == "some_content":
            text_content = rng.choice(self.placeholders)
        elif kind == "some_style":
            text_style = rng.choice(self.placeholders)
        elif kind == "some_of_both":
            text_content, text_style = rng.sample(self.placeholders, 2)
        elif kind == "keyword" and keywords:
            text_content = f"{content} {rng.choice(keywords.split(', '))}"
        elif kind == "alias":
            text_content = alias_of(content)
        elif kind == "free":
            form = rng.choice(_FREE_FORMS)
        elif kind == "no_style":
            form = "{a} {content} emoji"
        elif kind == "no_content":
            form = "an emoji in {style} style"
        text = form.format(a=article(text_content), content=text_content, style=text_style)
        if view == "small":
            return f"{text}, small"
        return f"{text} on {article(view)} {view} background" if view else text


def train_tokenizer(captions: Iterable[str], params: TextParams) -> CLIPTokenizer:
    """A CLIPTokenizer with a vocabulary of its own: every byte is known, so that no word is unknown."""
    prototype = CLIPTokenizer(model_max_length=params.max_length)
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix=""))
    tokenizer.normalizer = prototype.backend_tokenizer.normalizer or normalizers.Lowercase()
    tokenizer.pre_tokenizer = prototype.backend_tokenizer.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=params.vocabulary - len(alphabet),  # room for each byte as a word's last one, which CLIP needs
        initial_alphabet=alphabet,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    learned = tokenizer.get_vocab()
    words = [token for token, _ in sorted(learned.items(), key=lambda item: item[1])]
    words += [byte + "</w>" for byte in alphabet if byte + "</w>" not in learned]
    merges = _merges(tokenizer)
    return CLIPTokenizer(
        vocab={word: index for index, word in enumerate(words)}, merges=merges, model_max_length=params.max_length
    )


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    import json

    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(merge) if not isinstance(merge, str) else tuple(merge.split(" ")) for merge in merges]


def make_text_encoders(params: TextParams, tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Untrained encoders. The second's projection is the identity and stays it: its pooled output is layer-normalised, where a
    trained projection would let all prompts grow alike."""
    configs = [
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=params.max_length,
            projection_dim=width,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        for width, layers in zip(params.widths, params.layers, strict=True)
    ]
    first, second = CLIPTextModel(configs[0]), CLIPTextModelWithProjection(configs[1])
    torch.nn.init.eye_(second.text_projection.weight).requires_grad_(False)
    return first, second


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Captions -> ids (N, max_length), padded and cut."""
    batch = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    return batch.input_ids


def encode(encoders, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SDXL's way: both encoders' last hidden states but one, side by side (N, T, w1 + w2), and the second's pooled
    output (N, w2)."""
    first, second = (encoder(ids, output_hidden_states=True) for encoder in encoders)
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


def caption_corpus(table, captions: CaptionParams, placeholders: list[str], seed: int) -> list[str]:
    """One caption for every row of a corpus table and a few of its views: what the tokenizer is trained on."""
    captioner, rng = Captioner(captions, placeholders), random.Random(derive_seed(seed, "tokenizer"))
    views = ["", "small", *COLOURS]
    rows = table[["content", "style", "keywords"]].itertuples(index=False)
    return [captioner(rng, *row, rng.choice(views)) for row in rows]
