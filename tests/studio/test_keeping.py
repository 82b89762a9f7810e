"""Kept pictures, registered adapters and exported files."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors import safe_open

from b4m_pipeline.diffusion.sampling import INFO_KEY, generate
from b4m_pipeline.registry.adapters import fetch_adapter
from b4m_pipeline.studio import keeping
from b4m_pipeline.studio.asked import ExportRequest
from tests.studio.conftest import MADE, drawn


@pytest.fixture
def picture(canvas):
    """A drawing at strengths, and its picture."""
    drawing = drawn(canvas, content_strength=0.5, style_strength=1.5, seed=4)
    assert drawing.state == "done", drawing.message
    return drawing, drawing.pictures[0]


def test_a_kept_picture_says_what_it_was_made_by(canvas, picture, tmp_path) -> None:
    name = keeping.keep(canvas, *picture, tmp_path)
    (entry,) = keeping.kept(tmp_path)
    assert entry == {"file": name, "prompt": "a snq toy in w@z style", "seed": 4}
    with Image.open(keeping.kept_file(name, tmp_path)) as kept:
        assert json.loads(kept.info[INFO_KEY])["style_scale"] == 1.5
        assert np.array_equal(np.asarray(kept), np.asarray(picture[1].image))
    runs = [yaml.safe_load(file.read_text())["run"] for file in sorted((tmp_path / "kept").glob("*.yml"))]
    assert [run["pipelines"] for run in runs] == ["compose", "generate"] and runs[1]["params"]["seed"] == 4
    keeping.discard(name, tmp_path)
    assert keeping.kept(tmp_path) == [] and not list((tmp_path / "kept").iterdir())


@pytest.mark.parametrize("name", ["../mlflow.db", "a/b.png", "none.png", ".png", "kept.yml"])
def test_nothing_else_can_be_fetched_or_removed(name, tmp_path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/kept.yml").touch()
    for reach in (keeping.kept_file, keeping.discard, keeping.exported_file):
        with pytest.raises(keeping.KeepingError):
            reach(name, tmp_path)


def test_what_is_registered_draws_the_picture_at_strength_1(canvas, picture, tiny_base, tmp_path) -> None:
    record = keeping.register(canvas, *picture, tmp_path)
    assert record["uri"] == "models:/b4m-joined-cup-ink/1"
    adapter = fetch_adapter(record["uri"])
    assert adapter.metadata["example_prompt"] == "a snq toy in w@z style" and json.loads(adapter.metadata["parents"])
    settings = canvas.settings(picture[0].request, picture[1].cell).model_copy(
        update={"content_scale": 1.0, "style_scale": 1.0}
    )
    (again,) = generate(adapter, tiny_base, settings, 4).values()
    assert np.abs(np.asarray(again, int) - np.asarray(picture[1].image, int)).max() <= 1


def test_an_adapter_of_the_registry_is_not_registered_again(canvas, tmp_path) -> None:
    drawing = drawn(canvas, ways=["make"], adapter=MADE)
    with pytest.raises(keeping.KeepingError, match="in the registry already"):
        keeping.register(canvas, drawing, drawing.pictures[0], tmp_path)


def test_a_file_for_other_programs_is_written_once(canvas, picture, tmp_path) -> None:
    wanted = ExportRequest(name="cup-ink", author="Ann <ann@example.com>", license="MIT")
    if not canvas.adapter(picture[0].request, picture[1].cell).metadata.get("architecture"):
        pytest.skip("the tiny model names no architecture")
    file = keeping.export(canvas, *picture, wanted, tmp_path)
    assert file == keeping.exported_file("cup-ink.safetensors", tmp_path)
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    assert header["modelspec.author"] == "Ann <ann@example.com>" and header["modelspec.license"] == "MIT"
    assert header["modelspec.thumbnail"].startswith("data:image/jpeg")
    with pytest.raises(keeping.KeepingError, match="there already"):
        keeping.export(canvas, *picture, wanted, tmp_path)
