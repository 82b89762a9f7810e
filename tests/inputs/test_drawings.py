"""Folders of drawings: made once, whole, and the user's from then on."""

import shutil

import numpy as np
import pytest
from PIL import Image

from b4m_pipeline.diffusion.families import BaseModelError
from b4m_pipeline.inputs import drawings
from b4m_pipeline.inputs.drawings import Drawing, Starts, draw_folders, drawing_folder
from tests.conftest import PIXELS

SETTINGS = {"steps": 1, "guidance_scale": 2.0, "batch_size": 2, "size": (PIXELS, PIXELS)}
WANTED = [Drawing("a cat", 5, "cat"), Drawing("a dog", 6, "dog"), Drawing("a hat", 7, "hat")]


def pixels(folder):
    return [np.asarray(Image.open(file), int) for file in sorted(folder.glob("*.png"))]


def test_every_drawing_has_its_text_and_a_folder_is_drawn_once(tiny_base, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert draw_folders({first: WANTED, second: WANTED[:1]}, tiny_base, SETTINGS) == [first, second]
    assert sorted(file.name for file in first.iterdir()) == [f"00{i}.{end}" for i in range(3) for end in ("png", "txt")]
    assert [(first / f"00{index}.txt").read_text() for index in range(3)] == ["cat", "dog", "hat"]
    assert all(picture.shape == (PIXELS, PIXELS, 3) for picture in pixels(first))
    assert np.abs(pixels(second)[0] - pixels(first)[0]).max() <= 1  # by its seed alone, not by its batch
    (first / "001.png").unlink()
    assert draw_folders({first: WANTED, second: WANTED[:1]}, tiny_base, SETTINGS) == []
    assert len(pixels(first)) == 2 and sorted(tmp_path.iterdir()) == [first, second]


def test_a_killed_run_goes_on_and_ends_with_the_same_pictures(tiny_base, tmp_path, monkeypatch):
    whole, folder, draw = tmp_path / "whole", tmp_path / "killed", drawings.draw
    draw_folders({whole: WANTED}, tiny_base, SETTINGS)
    asked = []

    def killed(pipeline, requests, **options):
        yield next(draw(pipeline, requests, **options))
        raise KeyboardInterrupt

    def counted(pipeline, requests, **options):
        asked.extend(requests)
        return draw(pipeline, requests, **options)

    with monkeypatch.context() as patch:
        patch.setattr(drawings, "draw", killed)
        with pytest.raises(KeyboardInterrupt):
            draw_folders({folder: WANTED}, tiny_base, SETTINGS)
    assert not folder.exists()
    (tmp_path / "killed.unfinished" / "001.png.partial").write_bytes(b"half a picture")
    monkeypatch.setattr(drawings, "draw", counted)
    assert draw_folders({folder: WANTED}, tiny_base, SETTINGS) == [folder]
    assert asked == WANTED[1:]
    assert sorted(file.name for file in folder.iterdir()) == sorted(file.name for file in whole.iterdir())
    assert max(np.abs(a - b).max() for a, b in zip(pixels(folder), pixels(whole), strict=True)) <= 1
    assert sorted(tmp_path.iterdir()) == [folder, whole]


def test_a_picture_that_cannot_be_written_does_not_count(tiny_base, tmp_path, monkeypatch):
    def full(self, file, **options):
        file.write_bytes(b"half a picture")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(OSError, match="No space left"):
            draw_folders({tmp_path / "cat": WANTED[:1]}, tiny_base, SETTINGS)
    assert not list(tmp_path.rglob("*.png"))


def test_what_another_run_has_finished_meanwhile_stays(tiny_base, tmp_path, monkeypatch):
    draw = drawings.draw

    def overtaken(*args, **options):
        (tmp_path / "cat").mkdir()
        return draw(*args, **options)

    monkeypatch.setattr(drawings, "draw", overtaken)
    draw_folders({tmp_path / "cat": WANTED}, tiny_base, SETTINGS)
    assert list(tmp_path.iterdir()) == [tmp_path / "cat"] and not list((tmp_path / "cat").iterdir())


def test_a_folders_name_knows_all_that_decides_its_pictures(tiny_base, tiny_sd, tmp_path):
    def name(wanted=WANTED, base=tiny_base, made_from=(), **changes):
        return drawing_folder(str(tmp_path), "cat", wanted, base, SETTINGS | changes, *made_from).name

    assert name() == name(batch_size=7) and name().startswith("cat-")
    others = {
        name(WANTED[:2]), name([*WANTED[:2], Drawing("a hat", 8, "hat")]), name([*WANTED[:2], Drawing("a hat", 7, "")]),
        name(steps=2), name(guidance_scale=1.0), name(size=(16, 16)), name(made_from=["weights"]),
        name(base=tiny_base.model_copy(update={"path": str(tiny_sd)})),
    }  # fmt: skip
    assert len(others) == 8 and name() not in others
    with pytest.raises(BaseModelError, match="base_model.path"):
        name(base=tiny_base.model_copy(update={"path": str(tmp_path)}))


def test_drawings_begin_with_pictures_and_each_has_its_own_after_a_kill(tiny_base, tmp_path):
    reds = [Image.new("RGB", (PIXELS, PIXELS), (80 * index, 0, 0)) for index in range(3)]
    settings = SETTINGS | {"steps": 4}
    whole, killed, plain = tmp_path / "whole", tmp_path / "killed", tmp_path / "plain"
    draw_folders({plain: WANTED}, tiny_base, settings)
    draw_folders({whole: WANTED}, tiny_base, settings, starts=Starts(reds, 0.5))
    shutil.copytree(whole, tmp_path / "killed.unfinished")
    (tmp_path / "killed.unfinished" / "001.png").unlink()
    draw_folders({killed: WANTED}, tiny_base, settings, starts=Starts(reds, 0.5))
    assert max(np.abs(a - b).max() for a, b in zip(pixels(whole), pixels(killed), strict=True)) <= 1
    assert min(np.abs(a - b).max() for a, b in zip(pixels(whole), pixels(plain), strict=True)) > 1
    assert len({starts.digest() for starts in (Starts(reds, 0.5), Starts(reds, 0.6), Starts(reds[::-1], 0.5))}) == 3
