"""Looks that the base model draws of the content's pictures: once for the same picture and settings."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydantic import ValidationError

from b4m_pipeline.inputs import drawn_looks
from b4m_pipeline.inputs.drawn_looks import add_drawn_looks
from b4m_pipeline.inputs.looks import UnknownLookError
from b4m_pipeline.inputs.params import DrawnLooksParams
from b4m_pipeline.inputs.prepare import caption_pictures
from tests.conftest import captioning_params, ingestion_params

LOOK = {"steps": 2, "guidance_scale": 2.0, "strength": 0.6}


def looks_of(folder, *styles, **changes):
    return ingestion_params(drawn_looks=DrawnLooksParams(**{"styles": styles, "folder": str(folder)} | LOOK | changes))


@pytest.fixture
def content():
    """Two pictures of a content, the second with a mask and of another shape, and one of a style."""
    rng = np.random.default_rng(0)
    sizes = {"c/0": (32, 32), "c/1": (40, 24), "s/0": (32, 32)}
    pictures = {key: Image.fromarray(rng.integers(0, 255, (h, w, 3), np.uint8)) for key, (w, h) in sizes.items()}
    pictures["c/1"].putalpha(Image.new("L", (40, 24), 77))
    rows = [
        {"picture": key, "role": "style" if key == "s/0" else "content", "concept": "cup", "token": "snq", "noun": "toy",
         "sha256": key, "caption": "a snq toy", "caption_source": "template"}
        for key in pictures
    ]  # fmt: skip
    return pd.DataFrame(rows), pictures


@pytest.mark.parametrize("name", ["sdxl", "sd", "sd3", "flux", "flux2", "z_image", "qwen_image"])
def test_every_family_redraws_a_picture_once(name, content, tiny_base, tiny_sd, tiny_flow, tmp_path, monkeypatch) -> None:
    own = {"sdxl": tiny_base, "sd": tiny_base.model_copy(update={"path": str(tiny_sd)})}
    base = own.get(name) or tiny_flow(name)
    params = looks_of(tmp_path, "water colour", resolution=32)
    manifest, pictures = add_drawn_looks(*content, params, base)
    (key,) = pictures
    assert key == "c/0+drawn-water-colour" and len(manifest) == 4
    row = manifest.iloc[-1]
    assert (row.picture, row.caption, row.caption_source) == (key, "a snq toy in water colour style", "look")
    assert pictures[key].size == (32, 32) and np.asarray(pictures[key]).std() > 1
    assert np.abs(np.asarray(pictures[key], int) - np.asarray(content[1]["c/0"], int)).max() > 1
    monkeypatch.setattr(drawn_looks, "_draw", None)  # nothing is drawn
    again = add_drawn_looks(*content, params, base)[1]
    assert np.array_equal(again[key], pictures[key])


def test_pictures_take_turns_and_keep_their_shape_and_mask(content, tiny_base, tmp_path) -> None:
    manifest, pictures = add_drawn_looks(*content, looks_of(tmp_path, "ink", "oil", resolution=64), tiny_base)
    assert list(pictures) == ["c/0+drawn-ink", "c/1+drawn-oil"]
    masked = pictures["c/1+drawn-oil"]
    assert masked.size == (40, 24) and masked.mode == "RGBA" and set(np.unique(masked.getchannel("A"))) == {77}
    sizes = {Image.open(file).size for file in tmp_path.glob("*.png")}
    assert sizes == {(64, 64), (80, 48)}  # as many pixels, in the picture's shape
    only = manifest[manifest.role == "style"]
    assert add_drawn_looks(only, content[1], looks_of(tmp_path, "ink"), tiny_base)[1] == {}


@pytest.mark.parametrize("changes", [{"strength": 0.9}, {"steps": 3}, {"guidance_scale": 1.0}, {"seed": 1}, {"resolution": 48}])
def test_other_settings_are_other_files(changes, content, tiny_base, tmp_path) -> None:
    def file(**own):
        looks = looks_of(tmp_path, "ink", **own)
        row = content[0].iloc[[0]]
        return drawn_looks._look(row, content[1], "ink", looks.look_template, looks.drawn_looks, tiny_base).file

    assert file() == file() != file(**changes)


def test_they_join_looks_by_filters_in_the_manifest(content, tiny_base, tmp_path) -> None:
    manifest = content[0].drop(columns=["caption", "caption_source"]).assign(sidecar="")
    params = looks_of(tmp_path, "ink").model_copy(update={"content_looks": {"comic": "comic book"}})
    prepared, pictures = caption_pictures(manifest, content[1], params, captioning_params(), "w@z", tiny_base)
    assert prepared["caption_source"].tolist() == ["template"] * 3 + ["look"] * 2
    assert prepared["caption"].tolist()[-2:] == ["a snq toy in comic book style", "a snq toy in ink style"]
    assert set(prepared["picture"]) == set(pictures)
    with pytest.raises(UnknownLookError, match=r"ingestion\.drawn_looks: here no base model draws any"):
        caption_pictures(manifest, content[1], params, captioning_params(), "w@z")


def test_settings_that_draw_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="styles name 'ink' twice"):
        DrawnLooksParams(styles=["ink", "oil", "ink"])
