"""Captions: what is put together from which text, and the models that give texts, tiny and random but real."""

import gc
import json
import weakref

import pandas as pd
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
)

from b4m_pipeline.common.words import article
from b4m_pipeline.inputs import captioners
from b4m_pipeline.inputs.captioners import CaptioningError, classify
from b4m_pipeline.inputs.params import CaptioningParams, ConceptParams, CounterpartParams, PreservationParams
from b4m_pipeline.inputs.prepare import caption_manifest
from b4m_pipeline.inputs.templates import add_variants, caption_of, preserved_prompts
from tests.conftest import PLAIN_CAPTIONING


def captioning(**changes) -> CaptioningParams:
    return CaptioningParams(**PLAIN_CAPTIONING | changes)


PARAMS = captioning()
WORDS = {"contents": ["red apple", "dog", "umbrella", "car"], "styles": ["twemoji", "oil painting", "neon", "noto"]}


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
        ("emoji", "an emoji emoji in w@z style"),
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
    assert tagged == "a mobile phone phone in w@z style"


def test_overlong_texts_are_cut_but_keep_the_token(caplog):
    long = " ".join(["word"] * 60)
    for caption in (content(long), content(f"{long} snq"), style(f"{long} w@z")):
        assert len(caption.split()) <= PARAMS.max_words + 6
        assert "snq" in caption or "w@z" in caption
    assert "is cut at 40" in caplog.text


def test_article():
    assert [article(word) for word in ("apple", "Ohwx", "snq", "w@z")] == ["an", "an", "a", "a"]


def test_templates_are_parameters_and_checked():
    params = captioning(content_template="photo of {content} {noun}", style_suffix=", {style}")
    assert content("neon", params) == "photo of snq toy, neon"
    bad = [("content_template", "a {noun}"), ("style_template", "{thing}"), ("style_template", "{}")]
    for field, template in [*bad, ("style_suffix", " in style")]:
        with pytest.raises(ValidationError, match=field):
            captioning(**{field: template})


def manifest(*rows):
    columns = ["picture", "role", "concept", "token", "noun", "sidecar"]
    fixed = [("style/ink/x", "style", "ink", "w@z", "emoji", "red apple")]
    return pd.DataFrame([*rows, *fixed], columns=columns)


def squares(table, size=16):
    return {key: Image.effect_noise((size, size), 10 + 7 * index).convert("RGB") for index, key in enumerate(table.picture)}


MIXED = manifest(
    ("content/toy/a", "content", "toy", "snq", "toy", ""),
    ("content/toy/b", "content", "toy", "snq", "toy", "neon"),
    ("counterpart_style/oil/a", "counterpart_style", "oil", "qrv", "emoji", ""),
    ("counterpart_content/dog/a", "counterpart_content", "dog", "vtk", "dog", ""),
    ("union/toy-ink/a", "union", "toy-ink", "snq", "toy", ""),
)


def test_without_models_sidecar_then_template():
    captioned = caption_manifest(MIXED, {}, PARAMS).set_index("picture")
    assert captioned.caption.to_dict() == {
        "content/toy/a": "a snq toy",
        "content/toy/b": "a snq toy in neon style",
        "counterpart_style/oil/a": "an emoji in qrv style",
        "counterpart_content/dog/a": "a vtk dog",
        "union/toy-ink/a": "a snq toy in w@z style",
        "style/ink/x": "a red apple emoji in w@z style",
    }
    assert list(captioned.caption_source) == ["template", "sidecar", "template", "template", "template", "sidecar"]
    assert "sidecar" not in captioned.columns
    assert "sidecar" in MIXED.columns  # the input stays as it was


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory, tiny_tokenizer):
    path = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": tiny_tokenizer.bos_token_id, "eos_token_id": tiny_tokenizer.eos_token_id}
    limits = {"vocab_size": len(tiny_tokenizer), "max_position_embeddings": tiny_tokenizer.model_max_length}
    text = {**tower, **ends, **limits}
    config = CLIPConfig(text_config=text, vision_config={**tower, "image_size": 16, "patch_size": 8}, projection_dim=8)
    CLIPModel(config).save_pretrained(path)
    side = {"height": 16, "width": 16}
    CLIPProcessor(CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=side), tiny_tokenizer).save_pretrained(path)
    (path / "tags.json").write_text(json.dumps(WORDS))
    return path


def test_classify_equals_the_models_own_probabilities(clip_folder):
    clip, processor = CLIPModel.from_pretrained(clip_folder).eval(), CLIPProcessor.from_pretrained(clip_folder)
    images = [Image.effect_noise((20, 20), 5 * index).convert("RGB") for index in range(captioners.BATCH + 3)]
    prompts = [f"a thing number {index}" for index in range(9)]
    with torch.inference_mode():
        inputs = processor(text=prompts, images=images, padding=True, return_tensors="pt")
        expected = clip(**inputs).logits_per_image.softmax(-1)
    for (index, confidence), row in zip(classify(images, prompts, clip, processor), expected, strict=True):
        assert confidence == pytest.approx(row.max().item(), abs=1e-5)
        assert row[index].item() == pytest.approx(confidence, abs=1e-5)


def test_a_style_is_tagged_with_contents_and_a_content_with_styles(clip_folder):
    params = captioning(clip=str(clip_folder), min_confidence=0)
    captioned = caption_manifest(MIXED, squares(MIXED), params).set_index("picture")
    assert list(captioned.caption_source) == ["tags", "sidecar", "tags", "tags", "template", "sidecar"]
    shown = {f"{article(word)} {word} emoji in qrv style" for word in WORDS["contents"]}
    assert captioned.caption["counterpart_style/oil/a"] in shown
    assert captioned.caption["content/toy/a"] in {f"a snq toy in {word} style" for word in WORDS["styles"]}
    assert captioned.caption["counterpart_content/dog/a"] in {f"a vtk dog in {word} style" for word in WORDS["styles"]}


def test_an_unsure_tag_is_not_used(clip_folder):
    captioned = caption_manifest(MIXED, squares(MIXED), captioning(clip=str(clip_folder), min_confidence=1))
    assert set(captioned.caption_source) == {"template", "sidecar"}


def test_given_words_take_the_place_of_the_file(clip_folder, tmp_path):
    params = captioning(clip=str(clip_folder), content_words=["boat"], style_words=["fresco"], min_confidence=1)
    captions = caption_manifest(MIXED, squares(MIXED), params).caption
    assert "a boat emoji in qrv style" in list(captions)  # the only word is certain
    assert "a snq toy in fresco style" in list(captions)


def test_models_are_loaded_only_where_needed_and_freed(clip_folder, monkeypatch):
    params = captioning(clip=str(clip_folder), vision_language_model="not/there")
    full = manifest(("content/toy/a", "content", "toy", "snq", "toy", "neon"))
    with monkeypatch.context() as patch:
        patch.setattr(captioners, "load_model", lambda *_: pytest.fail("a model was loaded"))
        caption_manifest(full, {}, params)
    seen = []
    load = captioners.load_model
    monkeypatch.setattr(captioners, "load_model", lambda *args: seen.append((pair := load(*args))[0]) or pair)
    caption_manifest(MIXED, squares(MIXED), captioning(clip=str(clip_folder)))
    reference = weakref.ref(seen.pop())
    gc.collect()
    assert reference() is None


def test_missing_models_and_words_name_the_parameter(clip_folder, tmp_path):
    pictures = squares(MIXED)
    with pytest.raises(CaptioningError, match=r"captioning.content_words is empty and .*tags.json"):
        caption_manifest(MIXED, pictures, captioning(clip=str(tmp_path / "gone")))
    words = {"content_words": ["a"], "style_words": ["b"]}
    with pytest.raises(CaptioningError, match=r"captioning.clip: .*gone' is no CLIPModel that can be loaded"):
        caption_manifest(MIXED, pictures, captioning(clip=str(tmp_path / "gone"), **words))
    with pytest.raises(CaptioningError, match=r"captioning.vision_language_model: .*gone"):
        caption_manifest(MIXED, pictures, captioning(vision_language_model=str(tmp_path / "gone")))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in clip_folder.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    (damaged / "model.safetensors").write_bytes(b"\x10" * 40)
    with pytest.raises(CaptioningError, match="captioning.clip"):
        caption_manifest(MIXED, pictures, captioning(clip=str(damaged)))
    (damaged / "tags.json").write_text('{"contents": "apple", "styles": []}')
    with pytest.raises(CaptioningError, match="must be a list of words"):
        caption_manifest(MIXED, pictures, captioning(clip=str(damaged)))


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "apple", "dog", "sea", "with", "boat"]
    vocabulary = {word: index for index, word in enumerate(words)}
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    text = {**tower, **ids, "vocab_size": len(words), "encoder_hidden_size": 16, "max_position_embeddings": 64}
    config = BlipConfig(text_config=text, vision_config={**tower, "image_size": 16, "patch_size": 8}, projection_dim=8)
    BlipForConditionalGeneration(config).save_pretrained(path)
    image_processor = BlipImageProcessorPil(size={"height": 16, "width": 16})
    BlipProcessor(image_processor, BertTokenizer(vocab=vocabulary)).save_pretrained(path)
    return path


def test_vision_language_model_comes_before_tags(blip_folder, clip_folder):
    params = captioning(vision_language_model=str(blip_folder), clip=str(clip_folder), min_confidence=0)
    captioned = caption_manifest(MIXED, squares(MIXED), params).set_index("picture")
    assert list(captioned.caption_source) == [
        "vision_language_model", "sidecar", "vision_language_model", "vision_language_model", "template", "sidecar"
    ]  # fmt: skip
    assert captioned.caption["content/toy/a"].startswith("a snq toy, ")
    assert "qrv" in captioned.caption["counterpart_style/oil/a"]
    again = caption_manifest(MIXED, squares(MIXED), params)
    assert list(again.caption) == list(captioned.caption)


def test_variants_are_further_rows_of_their_own_pictures() -> None:
    import pandas as pd

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
    own = captioning(
        content_variants=["{article} {content} {noun}", "{content} {noun} in {style} style"],
        style_variants=["{article} {noun} in {style} style"],
    )
    found = add_variants(manifest, own, "w@z")
    assert found["caption"].tolist() == [*manifest["caption"], "an ohwx toy", "ohwx toy in w@z style", "a toy in w@z style"]
    assert found["picture"].tolist()[2:] == ["content/cup/0"] * 2 + ["style/ink/0"]
    assert set(found["caption_source"][2:]) == {"variant"} and found["role"].tolist()[2:] == ["content", "content", "style"]
    assert add_variants(manifest, captioning(), "w@z").equals(manifest)
    with pytest.raises(ValueError, match="content_variants must hold"):
        captioning(content_variants=["a {noun}"])
    with pytest.raises(ValueError, match="style_variants must hold"):
        captioning(style_variants=["a {content} in {style} style"])


def test_preserved_prompts_name_one_concept_of_the_run_at_most() -> None:
    content, style = ConceptParams(path="cup", token="snq", noun="toy"), ConceptParams(path="ink", token="w@z")
    counterparts = CounterpartParams(contents=[], styles=[ConceptParams(path="oil", token="qrv")])
    params = PreservationParams(contents=["owl", "cat"], styles=["oil", "gold"], number=40)
    prompts = preserved_prompts(params, content, style, counterparts, 3)
    assert prompts == preserved_prompts(params, content, style, counterparts, 3)
    tokens = {"snq": "content", "w@z": "style", "qrv": "style"}
    assert all(len({tokens[word] for word in prompt.split() if word in tokens}) <= 1 for prompt in prompts)
    assert not [p for p in prompts if "snq" in p and ("w@z" in p or "qrv" in p)]
    assert "an owl toy in qrv style" in prompts and "a snq toy in gold style" in prompts and "a cat toy in oil style" in prompts
    assert preserved_prompts(PreservationParams(contents=[], styles=[]), content, style, counterparts, 3) == []
    with pytest.raises(ValueError, match="both contents and styles"):
        PreservationParams(contents=["owl"], styles=[])
    with pytest.raises(ValueError, match="template must hold"):
        PreservationParams(contents=[], styles=[], template="{content}")
