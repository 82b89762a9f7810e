"""What is understood of pictures, and what is not taken."""

import io
import os
import struct
import zlib

import pytest
from PIL import Image
from pydantic import ValidationError

from b4m_pipeline.inputs.folders import PicturesError
from b4m_pipeline.inputs.squares import UnusablePictureError
from b4m_pipeline.studio.asked import CaptionRequest, ConceptRequest, PairRequest
from b4m_pipeline.studio.intake import Intake, IntakeError
from b4m_pipeline.studio.places import MOST_PICTURES, PlacesError

CUP, INK = "data/01_raw/own/cup", "data/01_raw/own/ink"


@pytest.fixture
def intake(places, parameters) -> Intake:
    return Intake(places, parameters)


def pair(**changes) -> PairRequest:
    return PairRequest(**{"content": {"path": CUP}, "style": {"path": INK}} | changes)


def file(size=(40, 40), form="PNG", mode="RGB") -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(buffer, format=form)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels, in some bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_every_picture_has_a_row_with_its_caption(intake, project) -> None:
    (project / CUP / "0.txt").write_text("ink drawing")
    (project / CUP / "bad.png").write_bytes(b"no picture")
    found = intake.inspect(pair(content={"path": CUP, "noun": "mug", "token": "zqj"}))
    captions = {row["key"]: (row["caption"], row["source"]) for row in found.rows}
    assert captions["content/cup/0"] == ("a zqj mug in ink drawing style", "sidecar")
    assert captions["style/ink/1"] == ("a toy in w@z style", "template")
    assert [(row["file"], row["concept"]) for row in found.left_out] == [("bad.png", "cup")]
    assert any("2 pictures" in text for text in found.warnings)
    assert intake.square(found.id, 0).size == (32, 32)
    with pytest.raises(IntakeError, match="look at the folders again"):
        intake.square(found.id, 9)
    with pytest.raises(IntakeError, match="look at the folders again"):
        intake.square("unknown", 0)


def test_what_looks_doubtful_is_marked(intake, project) -> None:
    Image.effect_noise((20, 90), 60).convert("RGB").save(project / CUP / "tall.png")
    Image.open(project / CUP / "1.png").save(project / CUP / "again.png")
    said = {row["file"]: " ".join(row["warnings"]) for row in intake.inspect(pair()).rows}
    assert "its sides are cut off" in said["tall.png"] and "smaller than the 32 pixels" in said["tall.png"]
    assert "nearly the same as" in said["1.png"] + said["again.png"]


def test_a_folder_that_cannot_be_trained_on_is_said(intake, project) -> None:
    with pytest.raises(PicturesError, match="same token"):
        intake.inspect(pair(style={"path": INK, "token": "snq"}))
    with pytest.raises(PlacesError):
        intake.inspect(pair(style={"path": "/etc"}))
    (project / "data/01_raw/own/empty").mkdir()
    with pytest.raises(PicturesError, match="holds no pictures"):
        intake.inspect(pair(style={"path": "data/01_raw/own/empty"}))


def test_ten_thousand_pictures_are_refused_before_any_is_read(intake, project, monkeypatch) -> None:
    monkeypatch.setattr(os, "walk", lambda folder: [(folder, [], [f"{i}.png" for i in range(10_000)])])
    with pytest.raises(IntakeError, match=f"10000 pictures.*takes {MOST_PICTURES}"):
        intake.concept("content", ConceptRequest(path=CUP))


def test_a_caption_is_written_beside_its_picture(intake, project) -> None:
    def write(name: str, text: str) -> None:
        intake.write_caption(CaptionRequest(folder=CUP, file=name, text=text))

    write("0.png", "a snq mug\n on a <b>table</b>")
    assert (project / CUP / "0.txt").read_text() == "a snq mug on a <b>table</b>"
    found = {row["key"]: row["caption"] for row in intake.inspect(pair()).rows}
    assert found["content/cup/0"] == "a snq mug on a <b>table</b>"
    write("0.png", " ")
    assert not (project / CUP / "0.txt").exists()
    for name in ("../ink/0.png", "9.png", "../../../../../etc/passwd"):
        with pytest.raises(IntakeError, match="no picture"):
            write(name, "x")
    (project / CUP / "1.txt").symlink_to(project / "secret")
    with pytest.raises(IntakeError, match="link"):
        write("1.png", "x")
    with pytest.raises(ValidationError):
        write("0.png", "x" * 3000)


def test_an_upload_is_checked_as_ingestion_checks(intake, project) -> None:
    assert intake.add("mug", "a.png", file()) == {"folder": "data/01_raw/own/mug", "file": "a.png"}
    assert intake.add("mug", "a.txt", b"a snq mug")["file"] == "a.txt"
    assert sorted(each.name for each in (project / "data/01_raw/own/mug").iterdir()) == ["a.png", "a.txt"]


@pytest.mark.parametrize(("own", "first", "second"), [("a.png", file(), file((50, 50))), ("a.txt", b"a snq mug", b"another")])
def test_an_upload_does_not_replace_another_file(intake, project, own, first, second) -> None:
    intake.add("mug", own, first)
    assert intake.add("mug", own, first)["file"] == own  # the same once more
    with pytest.raises(IntakeError, match=f"mug has another {own} already"):
        intake.add("mug", own, second)
    assert (project / "data/01_raw/own/mug" / own).read_bytes() == first


@pytest.mark.parametrize(
    ("name", "own", "data", "said"),
    [
        ("mug", "a.png", b"<script>alert(1)</script>", "no picture"),
        ("mug", "a.png", b"", "empty file"),
        ("mug", "a.png", bomb(), "million pixels|too large"),
        ("mug", "a.svg", b"<svg/>", "only pictures"),
        ("mug", "../a.png", file(), "no plain file name"),
        ("../mug", "a.png", file(), "letters, digits"),
        ("<b>", "a.png", file(), "letters, digits"),
        ("mug", "a.txt", b"\xff\xfe", "not UTF-8"),
        ("mug", "a.txt", b"a\0b", "no caption"),
        ("mug", "a.txt", b"a" * 70_000, "no caption"),
    ],
)
def test_what_cannot_be_used_is_not_kept(intake, project, name, own, data, said) -> None:
    with pytest.raises((IntakeError, PlacesError, UnusablePictureError), match=said):
        intake.add(name, own, data)
    assert not (project / "data/01_raw/own/mug").exists()


def test_uploads_do_not_follow_links(intake, project, tmp_path) -> None:
    (project / "data/01_raw/own/linked").symlink_to(tmp_path)
    with pytest.raises(IntakeError, match="link"):
        intake.add("linked", "a.png", file())
