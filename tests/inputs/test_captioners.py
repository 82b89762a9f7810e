"""The models that give captions their texts, tiny and random but real."""

import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from b4m_pipeline.common.hub import HubError
from b4m_pipeline.common.words import article
from b4m_pipeline.inputs import captioners
from b4m_pipeline.inputs.captioners import classify
from b4m_pipeline.inputs.captions import CaptioningError
from b4m_pipeline.inputs.prepare import caption_manifest
from tests.conftest import captioning_params
from tests.inputs.helpers import MIXED, WORDS, squares


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
    params = captioning_params(clip=str(clip_folder), min_confidence=0)
    captioned = caption_manifest(MIXED, squares(MIXED), params, "w@z").set_index("picture")
    assert list(captioned.caption_source) == ["tags", "sidecar", "tags", "tags", "template", "sidecar"]
    shown = {f"{article(word)} {word} emoji in qrv style" for word in WORDS["contents"]}
    assert captioned.caption["counterpart_style/oil/a"] in shown
    assert captioned.caption["content/toy/a"] in {f"a snq toy in {word} style" for word in WORDS["styles"]}
    assert captioned.caption["counterpart_content/dog/a"] in {f"a vtk dog in {word} style" for word in WORDS["styles"]}


def test_an_unsure_tag_is_not_used(clip_folder):
    captioned = caption_manifest(MIXED, squares(MIXED), captioning_params(clip=str(clip_folder), min_confidence=1), "w@z")
    assert set(captioned.caption_source) == {"template", "sidecar"}


def test_given_words_take_the_place_of_the_file(clip_folder, tmp_path):
    params = captioning_params(clip=str(clip_folder), content_words=["boat"], style_words=["fresco"], min_confidence=1)
    captions = caption_manifest(MIXED, squares(MIXED), params, "w@z").caption
    assert "a boat emoji in qrv style" in list(captions)  # the only word is certain
    assert "a snq toy in fresco style" in list(captions)


def test_missing_models_and_words_name_the_parameter(clip_folder, tmp_path):
    pictures = squares(MIXED)
    with pytest.raises(CaptioningError, match=r"captioning.content_words is empty and .*tags.json"):
        caption_manifest(MIXED, pictures, captioning_params(clip=str(tmp_path / "gone")), "w@z")
    words = {"content_words": ["a"], "style_words": ["b"]}
    with pytest.raises(CaptioningError, match=r"captioning.clip: .*gone' is no CLIPModel that can be loaded"):
        caption_manifest(MIXED, pictures, captioning_params(clip=str(tmp_path / "gone"), **words), "w@z")
    with pytest.raises(HubError, match=r"captioning.vision_language_model .*gone"):
        caption_manifest(MIXED, pictures, captioning_params(vision_language_model=str(tmp_path / "gone")), "w@z")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in clip_folder.iterdir():
        (damaged / file.name).write_bytes(file.read_bytes())
    (damaged / "model.safetensors").write_bytes(b"\x10" * 40)
    with pytest.raises(CaptioningError, match="captioning.clip"):
        caption_manifest(MIXED, pictures, captioning_params(clip=str(damaged)), "w@z")
    (damaged / "tags.json").write_text('{"contents": "apple", "styles": []}')
    with pytest.raises(CaptioningError, match="must be a list of words"):
        caption_manifest(MIXED, pictures, captioning_params(clip=str(damaged)), "w@z")
