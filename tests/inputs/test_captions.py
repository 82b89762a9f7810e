"""Captions: what is put together from which text."""

import pandas as pd
import pytest
from pydantic import ValidationError

from b4m_pipeline.inputs.captions import add_variants, caption_of, preserved_prompts
from b4m_pipeline.inputs.params import ConceptParams
from tests.conftest import captioning_params, counterpart_params, preservation_params
from tests.inputs.helpers import PARAMS


def content(text, params=PARAMS, noun="toy"):
    return caption_of("content", "snq", noun, text, "w@z", params)


def style(text, params=PARAMS, noun="emoji"):
    return caption_of("style", "w@z", noun, text, "w@z", params)


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("", "a snq toy"),
        ("twemoji", "a snq toy in twemoji style"),
        ("in oil painting style", "a snq toy in oil painting style"),
        ("An oil painting.", "a snq toy in oil painting style"),
        ("on a red sofa", "a snq toy, on a red sofa"),
        ("a rabbit with blue ears on the grass", "a snq toy, a rabbit with blue ears on the grass"),
        ("my SNQ at sea", "my SNQ at sea"),
        ("snqs are many and this is none of it", "a snq toy, snqs are many and this is none of it"),
    ],
)
def test_captions_of_a_content(text, caption):
    assert content(text) == caption


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("", "an emoji in w@z style"),
        ("red apple", "a red apple emoji in w@z style"),
        ("an umbrella emoji", "an umbrella emoji in w@z style"),
        ("emoji", "an emoji in w@z style"),
        ("a boat, seen from above", "an emoji in w@z style, a boat, seen from above"),
        ("a boat in w@z style", "a boat in w@z style"),
    ],
)
def test_captions_of_a_style(text, caption):
    assert style(text) == caption


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ("", "a snq toy in w@z style"),
        ("at sea", "a snq toy in w@z style, at sea"),
        ("a snq at sea", "a snq toy in w@z style, a snq at sea"),
        ("w@z style, snq at sea", "w@z style, snq at sea"),
    ],
)
def test_captions_of_both_together_hold_both_tokens(text, caption):
    assert caption_of("union", "snq", "toy", text, "w@z", PARAMS) == caption


def test_a_sentence_by_a_model_is_no_style_and_a_tag_is_no_sentence():
    described = caption_of("content", "snq", "toy", "a red boat", "w@z", PARAMS, "vision_language_model")
    assert described == "a snq toy, a red boat"
    described = caption_of("style", "w@z", "emoji", "a red boat", "w@z", PARAMS, "vision_language_model")
    assert described == "a red boat emoji in w@z style"
    tagged = caption_of("style", "w@z", "phone", "mobile phone", "w@z", PARAMS, "tags")
    assert tagged == "a mobile phone in w@z style"


def test_overlong_texts_are_cut_but_keep_the_token(caplog):
    long = " ".join(["word"] * 60)
    for caption in (content(long), content(f"{long} snq"), style(f"{long} w@z")):
        assert len(caption.split()) <= PARAMS.max_words + 6
        assert "snq" in caption or "w@z" in caption
    assert "is cut at 40" in caplog.text


def test_templates_are_parameters_and_checked():
    params = captioning_params(content_template="photo of {content} {noun}", style_suffix=", {style}")
    assert content("neon", params) == "photo of snq toy, neon"
    bad = [("content_template", "a {noun}"), ("style_template", "{thing}"), ("style_template", "{}")]
    for field, template in [*bad, ("style_suffix", " in style")]:
        with pytest.raises(ValidationError, match=field):
            captioning_params(**{field: template})


def test_variants_are_further_rows_of_their_own_pictures() -> None:

    manifest = pd.DataFrame(
        {
            "picture": ["content/cup/0", "style/ink/0"],
            "role": ["content", "style"],
            "token": ["ohwx", "w@z"],
            "noun": ["toy", "toy"],
            "caption": ["an ohwx toy in noto style", "a cat in w@z style"],
            "caption_source": ["sidecar", "sidecar"],
        }
    )
    own = captioning_params(
        content_variants=["{article} {content} {noun}", "{content} {noun} in {style} style"],
        style_variants=["{article} {noun} in {style} style"],
    )
    found = add_variants(manifest, own, "w@z")
    assert found["caption"].tolist() == [*manifest["caption"], "an ohwx toy", "ohwx toy in w@z style", "a toy in w@z style"]
    assert found["picture"].tolist()[2:] == ["content/cup/0"] * 2 + ["style/ink/0"]
    assert set(found["caption_source"][2:]) == {"variant"} and found["role"].tolist()[2:] == ["content", "content", "style"]
    assert add_variants(manifest, captioning_params(), "w@z").equals(manifest)
    with pytest.raises(ValueError, match="content_variants must hold"):
        captioning_params(content_variants=["a {noun}"])
    with pytest.raises(ValueError, match="style_variants must hold"):
        captioning_params(style_variants=["a {content} in {style} style"])


def test_preserved_prompts_name_one_concept_of_the_run_at_most() -> None:
    content, style = ConceptParams(path="cup", token="snq", noun="toy"), ConceptParams(path="ink", token="w@z")
    counterparts = counterpart_params(styles=[ConceptParams(path="oil", token="qrv")])
    params = preservation_params(contents=["owl", "cat"], styles=["oil", "gold"], number=40)
    prompts = preserved_prompts(params, content, style, counterparts, 3)
    assert prompts == preserved_prompts(params, content, style, counterparts, 3)
    tokens = {"snq": "content", "w@z": "style", "qrv": "style"}
    assert all(len({tokens[word] for word in prompt.split() if word in tokens}) <= 1 for prompt in prompts)
    assert not [p for p in prompts if "snq" in p and ("w@z" in p or "qrv" in p)]
    assert "an owl toy in qrv style" in prompts and "a snq toy in gold style" in prompts and "a cat toy in oil style" in prompts
    assert preserved_prompts(params, content.model_copy(update={"noun": "house"}), style, counterparts, 3) == prompts
    assert preserved_prompts(preservation_params(), content, style, counterparts, 3) == []
    with pytest.raises(ValueError, match="both contents and styles"):
        preservation_params(contents=["owl"])
    with pytest.raises(ValueError, match="template must hold"):
        preservation_params(template="{content}")
