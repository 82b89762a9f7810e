"""Captions of a manifest: which source comes first, and which model is loaded."""

import gc
import weakref

import pytest

from b4m_pipeline.inputs import captioners
from b4m_pipeline.inputs.params import CaptioningParams
from b4m_pipeline.inputs.prepare import caption_manifest
from tests.inputs.helpers import MIXED, PARAMS, manifest, squares


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


def test_models_are_loaded_only_where_needed_and_freed(clip_folder, monkeypatch):
    params = CaptioningParams(clip=str(clip_folder), vision_language_model="not/there")
    full = manifest(("content/toy/a", "content", "toy", "snq", "toy", "neon"))
    with monkeypatch.context() as patch:
        patch.setattr(captioners, "load_model", lambda *_: pytest.fail("a model was loaded"))
        caption_manifest(full, {}, params)
    seen = []
    load = captioners.load_model
    monkeypatch.setattr(captioners, "load_model", lambda *args: seen.append((pair := load(*args))[0]) or pair)
    caption_manifest(MIXED, squares(MIXED), CaptioningParams(clip=str(clip_folder)))
    reference = weakref.ref(seen.pop())
    gc.collect()
    assert reference() is None


def test_vision_language_model_comes_before_tags(blip_folder, clip_folder):
    params = CaptioningParams(vision_language_model=str(blip_folder), clip=str(clip_folder), min_confidence=0)
    captioned = caption_manifest(MIXED, squares(MIXED), params).set_index("picture")
    assert list(captioned.caption_source) == [
        "vision_language_model", "sidecar", "vision_language_model", "vision_language_model", "template", "sidecar"
    ]  # fmt: skip
    assert captioned.caption["content/toy/a"].startswith("a snq toy, ")
    assert "qrv" in captioned.caption["counterpart_style/oil/a"]
    again = caption_manifest(MIXED, squares(MIXED), params)
    assert list(again.caption) == list(captioned.caption)
