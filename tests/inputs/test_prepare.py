"""Captions of a manifest: which source comes first, and which model is loaded."""

import gc
import weakref

import pytest
from PIL import Image

from b4m_pipeline.inputs import captioners
from b4m_pipeline.inputs.folders import list_folders
from b4m_pipeline.inputs.params import ConceptParams
from b4m_pipeline.inputs.prepare import caption_manifest, own_pictures, prepare
from tests.conftest import captioning_params, counterpart_params, ingestion_params
from tests.inputs.helpers import MIXED, PARAMS, manifest, squares


def test_without_models_sidecar_then_template():
    captioned = caption_manifest(MIXED, {}, PARAMS, "w@z").set_index("picture")
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
    params = captioning_params(clip=str(clip_folder), vision_language_model="not/there")
    full = manifest(("content/toy/a", "content", "toy", "snq", "toy", "neon"))
    with monkeypatch.context() as patch:
        patch.setattr(captioners, "load_model", lambda *_: pytest.fail("a model was loaded"))
        caption_manifest(full, {}, params, "w@z")
    seen = []
    load = captioners.load_model
    monkeypatch.setattr(captioners, "load_model", lambda *args: seen.append((pair := load(*args))[0]) or pair)
    caption_manifest(MIXED, squares(MIXED), captioning_params(clip=str(clip_folder)), "w@z")
    reference = weakref.ref(seen.pop())
    gc.collect()
    assert reference() is None


def test_vision_language_model_comes_before_tags(qwen3_folder, clip_folder):
    params = captioning_params(vision_language_model=str(qwen3_folder), clip=str(clip_folder), min_confidence=0)
    pictures = squares(MIXED)
    captioned = caption_manifest(MIXED, pictures, params, "w@z").set_index("picture")
    assert list(captioned.caption_source) == [
        "vision_language_model", "sidecar", "vision_language_model", "vision_language_model", "template", "sidecar"
    ]  # fmt: skip
    assert captioned.caption["content/toy/a"].startswith("a snq toy, ")
    assert "qrv" in captioned.caption["counterpart_style/oil/a"]
    again = caption_manifest(MIXED, pictures, params, "w@z")
    assert list(again.caption) == list(captioned.caption)


@pytest.fixture
def folders(tmp_path):
    for number, name in enumerate(("cup", "ink")):
        (tmp_path / name).mkdir()
        for index in range(2):
            picture = Image.effect_noise((40, 40), 60).convert("RGB")
            picture.paste((200 * number, 90 * index, 90), (4, 8, 24 + 6 * index, 30))
            picture.save(tmp_path / name / f"{index}.png")
    (tmp_path / "cup" / "broken.png").write_bytes(b"")
    content = ConceptParams(path=str(tmp_path / "cup"), token="snq", noun="toy")
    style = ConceptParams(path=str(tmp_path / "ink"), token="w@z")
    return list_folders(content, style, counterpart_params(), None)


def test_folders_become_all_that_is_trained_on(folders):
    """Checked, captioned, redrawn and captioned once more, in this order: a look has further captions of its own."""
    ingestion = ingestion_params(content_looks={"comic": "comic book"})
    captioning = captioning_params(content_variants=["{content} in {style}"], style_variants=["all in {style}"])
    prepared = prepare(folders, 32, ingestion, captioning, "w@z")
    table = prepared.manifest
    assert table["caption_source"].tolist() == ["template"] * 4 + ["look"] + ["variant"] * 5
    assert set(table["picture"]) == set(prepared.pictures) and len(prepared.pictures) == 5
    assert table.loc[table["caption_source"] == "look", "caption"].tolist() == ["a snq toy in comic book style"]
    assert table.loc[5:, "caption"].tolist() == ["snq in w@z"] * 3 + ["all in w@z"] * 2
    assert prepared.quarantine["file"].tolist() == ["broken.png"]
    assert len(own_pictures(table, "content")) == 2
    references = prepared.references("content")
    assert [(picture.mode, picture.size) for picture in references] == [("RGB", (32, 32))] * 2
    assert references[0].tobytes() != references[1].tobytes()
    assert not prepared.references("union")


def test_without_looks_and_variants_there_are_the_pictures_alone(folders):
    prepared = prepare(folders, 32, ingestion_params(), captioning_params(), "w@z")
    assert prepared.manifest["caption"].tolist() == ["a snq toy"] * 2 + ["an emoji in w@z style"] * 2
