"""Before make, the joined halves draw what their prompt names; what the user makes of the folder counts."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from b4m_pipeline.inputs.folders import PicturesError
from b4m_pipeline.training import rehearsal
from b4m_pipeline.training.params import MakeParams, RehearsalParams
from b4m_pipeline.training.stages import MakeStage
from tests.conftest import PIXELS, captioning_params, ingestion_params, train_make
from tests.training.helpers import MAKE, frame

PROMPTS = ["{article} {content} {noun} in {style} style", "{article} {content} {noun} in {style} style on a red background"]


def params(folder: Path, **changes) -> RehearsalParams:
    own = {"images": 3, "prompts": PROMPTS, "steps": 1, "guidance_scale": 2.0, "batch_size": 2, "folder": str(folder)}
    return RehearsalParams(**own | changes)


SHOWN = [Image.new("RGB", (PIXELS, 2 * PIXELS), "red")], [Image.effect_noise((PIXELS, PIXELS), 90).convert("RGB")] * 2


def rehearse(joined, base, own: RehearsalParams, seed: int = 0, prefer=lambda sets: "pictures") -> Path:
    return rehearsal.rehearse(joined, *SHOWN, base, own, seed, prefer)


@pytest.fixture(scope="module")
def drawn(tiny_joined, tiny_base, tmp_path_factory) -> Path:
    return rehearse(tiny_joined, tiny_base, params(tmp_path_factory.mktemp("rehearsals")))


@pytest.fixture
def folder(drawn, tmp_path) -> Path:
    return shutil.copytree(drawn, tmp_path / drawn.name)


@pytest.fixture
def joined(tiny_training_set, tiny_manifest, tiny_joined, tiny_base):
    def add(folder: Path):
        settings = ingestion_params(), captioning_params(), None
        return rehearsal.with_rehearsal(tiny_training_set, *tiny_manifest, folder, tiny_joined, tiny_base, *settings)[0]

    return add


def test_prompts_take_turns_and_stand_beside_their_pictures(folder, tiny_joined, tiny_base, tmp_path):
    assert sorted(path.name for path in folder.iterdir()) == [f"00{i}.{end}" for i in range(3) for end in ("png", "txt")]
    said = [(folder / f"00{index}.txt").read_text() for index in range(3)]
    assert said == ["a snq toy in w@z style", "a snq toy in w@z style on a red background", "a snq toy in w@z style"]
    pictures = [Image.open(folder / f"00{index}.png") for index in range(3)]
    assert all(picture.size == (PIXELS, PIXELS) for picture in pictures)
    assert pictures[0].tobytes() != pictures[2].tobytes()  # another seed
    again = rehearse(tiny_joined, tiny_base, params(tmp_path / "again", batch_size=3), 0)
    assert again.name == folder.name
    first, second = (np.asarray(Image.open(each / "002.png"), int) for each in (folder, again))
    assert np.abs(first - second).max() <= 1


def test_what_is_there_is_not_drawn_again_and_other_settings_have_another_folder(
    folder, tiny_joined, tiny_base, tmp_path, monkeypatch
):
    monkeypatch.setattr(rehearsal, "draw_folders", lambda folders, *_: [each.mkdir(parents=True) for each in folders])
    (folder / "001.png").unlink()
    assert rehearse(tiny_joined, tiny_base, params(tmp_path), 0) == folder
    assert not (folder / "001.png").exists()
    other = params(tmp_path, images=1), params(tmp_path, start="noise"), params(tmp_path, strength=0.9)
    for changed, seed in (*((each, 0) for each in other), (params(tmp_path), 1)):
        assert rehearse(tiny_joined, tiny_base, changed, seed) != folder


def test_what_is_in_the_folder_is_the_unions_pictures(folder, joined, tiny_training_set):
    first = joined(folder)
    union = first.table[first.table.role == "union"]
    assert sorted(union.caption) == sorted((folder / f"00{index}.txt").read_text() for index in range(3))
    assert len(first.table) == len(tiny_training_set.table) + 3 == len(first.tensors["latents_mean"])
    (folder / "000.png").unlink()
    (folder / "000.txt").unlink()
    Image.effect_noise((50, 40), 60).convert("RGB").save(folder / "own.jpg")
    second = joined(folder)
    union = second.table[second.table.role == "union"]
    assert union.file.tolist() == ["001.png", "002.png", "own.jpg"]
    assert union.caption.iloc[-1] == "a snq toy in w@z style"  # by the templates, as there is no text
    for file in folder.glob("*.*g"):
        file.unlink()
    with pytest.raises(PicturesError, match="make.rehearsal.folder"):
        joined(folder)


def test_make_trains_on_it_and_is_another_adapter_if_a_picture_is_deleted(
    folder, joined, tiny_joined, tiny_training_set, tiny_base, tmp_path
):
    own = MakeParams(**MAKE | {"rehearsal": params(tmp_path).model_dump()})

    def stage(training_set):
        return MakeStage(tiny_joined, training_set, tiny_base, frame(), own, 0).recipe.digest

    made, _ = train_make(tiny_joined, joined(folder), tiny_base, frame(), own, 0)
    assert '"union": {"number": 3' in made.metadata["pictures"]
    before = stage(joined(folder))
    (folder / "000.png").unlink()
    (folder / "000.txt").unlink()
    assert len({before, stage(joined(folder)), stage(tiny_training_set)}) == 3


def test_drawings_begin_with_the_contents_pictures_in_the_styles_colours(tiny_joined, tiny_base, tmp_path, monkeypatch):
    given = []

    def draw_folders(folders, base_model, settings, adapter, starts):
        given.append(starts)
        for folder in folders:
            folder.mkdir(parents=True)

    monkeypatch.setattr(rehearsal, "draw_folders", draw_folders)
    cup = Image.new("RGB", (PIXELS, PIXELS), "white")
    cup.paste("red", (8, 8, 24, 24))
    night = Image.new("RGB", (2 * PIXELS, 2 * PIXELS), "black")
    night.paste("white", (10, 10, 40, 40))
    for start in ("pictures", "noise"):
        own = params(tmp_path, start=start)
        rehearsal.rehearse(tiny_joined, [cup], [night, night], tiny_base, own, 0, None)
    assert given[1] is None and given[0].strength == 0.65 and len(given[0].pictures) == 3
    for picture in given[0].pictures:
        assert picture.size == (PIXELS, PIXELS)
        assert min(picture.getpixel((16, 16))) > 230 and max(picture.getpixel((1, 1))) < 25


@pytest.mark.parametrize("better", ["pictures", "noise"])
def test_of_drawings_that_begin_both_ways_the_better_ones_stay(better, tiny_joined, tiny_base, tmp_path):
    asked = []

    def prefer(sets):
        asked.append({name: [image.size for image in images] for name, images in sets.items()})
        return better

    folder = rehearse(tiny_joined, tiny_base, params(tmp_path / "best", start="best"), 0, prefer)
    assert asked == [dict.fromkeys(("pictures", "noise"), [(PIXELS, PIXELS)] * 3)]
    assert list(folder.parent.iterdir()) == [folder]
    alone = rehearse(tiny_joined, tiny_base, params(tmp_path / "alone", start=better), 0)
    for name in ("000.png", "002.png"):
        assert (folder / name).read_bytes() == (alone / name).read_bytes()
    rehearse(tiny_joined, tiny_base, params(tmp_path / "best", start="best"), 0, prefer)
    assert len(asked) == 1  # the folder is the user's now
