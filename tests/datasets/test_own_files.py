"""Folders that the program shares with the user."""

import base64
import io
from pathlib import Path

import pytest
from kedro.io import DatasetError
from PIL import Image

from b4m_pipeline.datasets import own_files
from b4m_pipeline.datasets.own_files import OwnFilesDataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "generated"


def dataset(folder: Path, **options) -> OwnFilesDataset:
    return OwnFilesDataset(path=str(folder), dataset="pillow.ImageDataset", filename_suffix=".png", **options)


def pictures(*names: str, grey: int = 0) -> dict[str, Image.Image]:
    return {name: Image.new("RGB", (2, 2), (grey,) * 3) for name in names}


def files(folder: Path) -> set[str]:
    """All but the record and its lock."""
    found = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    return {name for name in found if not name.startswith(".written.")}


def test_a_new_run_takes_the_place_of_what_the_last_one_wrote_and_of_nothing_else(folder) -> None:
    dataset(folder).save(pictures("a/0", "a/1", "b/0"))
    (folder / "best.txt").write_text("a/1")
    (folder / "mine").mkdir()
    Image.new("RGB", (3, 3)).save(folder / "mine/0.png")
    dataset(folder).save(pictures("a/0", grey=9))
    assert files(folder) == {"a/0.png", "best.txt", "mine/0.png"} and not (folder / "b").exists()
    loaded = dataset(folder).load()
    assert list(loaded) == ["a/0"] and loaded["a/0"]().getpixel((0, 0)) == (9, 9, 9)


def test_what_the_user_changed_or_put_under_a_needed_name_is_kept_beside(folder, caplog) -> None:
    dataset(folder).save(pictures("0", "1", "2"))
    for name in ("0", "2"):
        Image.new("RGB", (5, 5)).save(folder / f"{name}.png")  # painted over
    Image.new("RGB", (7, 7)).save(folder / "3.png")
    (folder / "4.png").mkdir()
    dataset(folder).save(pictures("0", "3", "4"))
    dataset(folder).save(pictures("0", "3", "4"))
    assert (
        files(folder) == {"0.png", "0.kept.png", "2.png", "3.png", "3.kept.png", "4.png"} and (folder / "4.kept.png").is_dir()
    )
    assert Image.open(folder / "0.kept.png").size == (5, 5) and Image.open(folder / "3.kept.png").size == (7, 7)
    assert sorted(dataset(folder).load()) == ["0", "3", "4"]
    assert "3.png was not written by a run, or was changed since: it is 3.kept.png now" in caplog.text


def test_pictures_from_before_there_were_records_are_loaded_and_left_alone(folder) -> None:
    folder.mkdir()
    Image.new("RGB", (2, 2)).save(folder / "old.png")
    assert list(dataset(folder).load()) == ["old"]
    dataset(folder).save(pictures("new"))
    assert files(folder) == {"old.png", "new.png"} and list(dataset(folder).load()) == ["new"]


@pytest.mark.parametrize("name", ["x" * 300, "画" * 80, "ok/" + "é" * 130])
def test_a_name_of_too_many_bytes_is_refused_before_anything_is_touched(folder, name) -> None:
    dataset(folder).save(pictures("a"))
    with pytest.raises(DatasetError, match="bytes, at most 240"):
        dataset(folder).save(pictures("b", name))
    assert files(folder) == {"a.png"} and list(dataset(folder).load()) == ["a"]


def test_names_do_not_lead_out_of_the_folder(folder) -> None:
    with pytest.raises(DatasetError):
        dataset(folder).save(pictures("../out"))
    assert not (folder.parent / "out.png").exists()


def test_an_error_before_all_are_written_leaves_the_old_ones(folder) -> None:
    def full() -> Image.Image:
        raise OSError(28, "No space left on device")

    dataset(folder).save(pictures("a", grey=1))
    with pytest.raises(DatasetError):
        dataset(folder).save({"a": Image.new("RGB", (2, 2)), "b": full})
    assert dataset(folder).load()["a"]().getpixel((0, 0)) == (1, 1, 1)


@pytest.mark.parametrize("moment", range(5))
def test_a_save_that_is_cut_short_anywhere_is_noticed_and_made_good_by_the_next(folder, monkeypatch, moment) -> None:
    dataset(folder).save(pictures("a", "b", "old"))
    (folder / "mine.png").write_bytes(b"mine")
    steps = iter(range(99))

    def until(function):
        def step(*arguments):
            if next(steps) == moment:
                raise KeyboardInterrupt
            return function(*arguments)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(own_files.os, "replace", until(own_files.os.replace))
        patch.setattr(own_files, "_is_own", until(own_files._is_own))
        with pytest.raises(KeyboardInterrupt):
            dataset(folder).save(pictures("a", "b", grey=5))
    if moment == 0:  # nothing of the old was touched yet
        assert sorted(dataset(folder).load()) == ["a", "b", "old"]
    else:
        with pytest.raises(DatasetError, match="was being written when its run ended"):
            dataset(folder).load()
    dataset(folder).save(pictures("a", grey=7))
    assert files(folder) == {"a.png", "mine.png"}
    assert dataset(folder).load()["a"]().getpixel((0, 0)) == (7, 7, 7)


def test_a_file_that_is_gone_is_said_by_name(folder) -> None:
    dataset(folder).save(pictures("a", "b"))
    (folder / "b.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of 2 files are not there any more \(b\)"):
        dataset(folder).load()


def test_earlier_runs_may_stay(folder) -> None:
    dataset(folder, replace=False).save(pictures("a"))
    dataset(folder, replace=False).save(pictures("b"))
    assert sorted(dataset(folder).load()) == ["a", "b"]


def test_other_places_than_local_folders_are_refused() -> None:
    with pytest.raises(DatasetError, match="local folders"):
        OwnFilesDataset(path="memory://x", dataset="pillow.ImageDataset")


def test_kedro_viz_shows_the_first_pictures_side_by_side(folder) -> None:
    dataset(folder).save(pictures(*(f"{index:02}" for index in range(40)), grey=9))
    preview = Image.open(io.BytesIO(base64.b64decode(dataset(folder).preview())))
    assert preview.size[0] == 2 * preview.size[1] and preview.getpixel((5, 5)) == (9, 9, 9)  # four rows of eight
    assert OwnFilesDataset.preview.__annotations__["return"].__name__ == "ImagePreview"
