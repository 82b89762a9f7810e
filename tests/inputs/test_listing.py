"""Every file of a folder is used, another program's, or not usable for a stated reason."""

import os

import pytest
from PIL import Image

from b4m_pipeline.inputs.listing import link_targets, list_files, printable, require_regular
from b4m_pipeline.inputs.squares import UnusablePictureError

PICTURE = Image.new("RGB", (8, 8), "red")


@pytest.fixture
def folder(tmp_path):
    PICTURE.save(tmp_path / "cat.jpg")
    return tmp_path


def listed(root) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): reason for path, reason in list_files(root).unusable}


@pytest.mark.parametrize(
    "name",
    [
        "Thumbs.db", "desktop.ini", "@eaDir/cat.jpg@SYNOPHOTO_THUMB_M.jpg", "__MACOSX/._cat.jpg", "sub/#recycle/cat.png",
        "cat.json", "cat.jpg.json", "cat.jpg.supplemental-metadata.json", "cat.XMP", "cat.jpg.xmp", "cat.AAE",
        "cat_0512x0768_sdxl.npz", "cat_te_outputs.npz", "cat-condlabel.png",
    ],
)  # fmt: skip
def test_other_programs_files_are_passed_over(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    PICTURE.save(folder / name, format="PNG")
    listing = list_files(folder)
    assert listing.others == 1 and listing.pictures == [folder / "cat.jpg"]
    assert (listing.captions, listing.masks, listing.tables, listing.unusable) == ({}, {}, [], [])


@pytest.mark.parametrize("name", [".hidden.jpg", ".AppleDouble/cat.jpg", "._cat.jpg", ".DS_Store", "README", "LICENSE.txt"])
def test_hidden_files_and_texts_about_the_folder_are_nobodys(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    PICTURE.save(folder / name, format="PNG")
    assert list_files(folder).pictures == [folder / "cat.jpg"] and listed(folder) == {}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dog.json", "its ending is .json"),
        ("dog.caption", "belongs to no picture"),
        ("dog-masklabel.png", "belongs to no picture"),
        ("dog-condlabel.png", "belongs to no picture"),
        ("catfish.npz", "its ending is .npz"),
        ("cat.svg", "format .svg is not supported"),
        ("sub/attribution.csv", "read from the folder itself alone"),
        ("cat.mp4", "its ending is .mp4"),
        ("notes", "its ending is missing"),
    ],
)
def test_the_rest_is_listed_with_a_reason(folder, name, reason):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    assert list(listed(folder)) == [name] and reason in listed(folder)[name]


@pytest.mark.parametrize("ending", ["jpg_large", "png~", "bak", "crdownload", "5"])
def test_a_picture_under_another_ending_is_named(folder, ending):
    PICTURE.save(folder / f"dog.{ending}", format="PNG")
    assert listed(folder) == {
        f"dog.{ending}": f"a picture (PNG) whose ending .{ending} is no picture's: rename it if it is to be used"
    }


def test_a_picture_without_an_ending_is_one(folder):
    PICTURE.save(folder / "dog", format="WEBP")
    (folder / "dog.txt").write_text("in ink style")
    listing = list_files(folder)
    assert listing.pictures == [folder / "cat.jpg", folder / "dog"]
    assert listing.captions == {folder / "dog": folder / "dog.txt"} and listing.unusable == []


def test_of_two_captions_and_masks_the_first_is_read(folder):
    for name in ("cat.txt", "cat.caption"):
        (folder / name).write_text("in ink style")
    for name in ("cat-masklabel.png", "cat.mask.png"):
        PICTURE.save(folder / name)
    listing = list_files(folder)
    assert listing.captions == {folder / "cat.jpg": folder / "cat.txt"}
    assert listing.masks == {folder / "cat.jpg": folder / "cat.mask.png"}
    assert listed(folder) == {
        "cat.caption": "cat.txt beside it is read", "cat-masklabel.png": "cat.mask.png beside it is read"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["cat.mask.png", "cat-masklabel.png", "CAT-MASKLABEL.PNG", "cat.mask.jpg", "cat.Mask.webp"])
def test_masks_are_no_pictures(folder, name):
    os.replace(folder / "cat.jpg", folder / f"{name[:3]}.jpg")
    PICTURE.save(folder / name)
    listing = list_files(folder)
    assert listing.pictures == [folder / f"{name[:3]}.jpg"] and list(listing.masks.values()) == [folder / name]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_would_block_is_not_opened(folder):
    for name in ("pipe", "pipe.xyz", "pipe.png"):
        os.mkfifo(folder / name)
    assert listed(folder) == {"pipe": "no regular file", "pipe.xyz": "no regular file"}
    with pytest.raises(UnusablePictureError, match="no regular file"):
        require_regular(folder / "pipe.png", link_targets(folder, []))


def test_blobs_that_are_a_link_themselves_lead_nowhere(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    PICTURE.save(outside / "secret.png")
    snapshot = folder / "datasets--x--y/snapshots/1"
    snapshot.mkdir(parents=True)
    (folder / "datasets--x--y/blobs").symlink_to(outside)
    (snapshot / "a.png").symlink_to("../../blobs/secret.png")
    with pytest.raises(UnusablePictureError, match="leads out of the folder"):
        require_regular(snapshot / "a.png", link_targets(snapshot, []))


def test_names_are_made_fit_for_logs_and_tables():
    assert printable("日本 ü.png") == "日本 ü.png"
    assert printable("a\nWARNING forged\r\x1b[31m.png") == "a\\nWARNING forged\\r\\x1b[31m.png"
    assert printable(os.fsdecode(b"\xff\xfe.png")) == "\\xff\\xfe.png" and printable("a\u202egnp.exe") == "a\\u202egnp.exe"
