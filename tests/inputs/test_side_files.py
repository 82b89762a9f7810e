"""Captions, tables of captions and attributions, whole and spoilt."""

import json

import pytest

from b4m_pipeline.inputs.listing import PicturesError
from b4m_pipeline.inputs.side_files import CAPTION_BYTES, read_attribution, read_caption, read_table
from b4m_pipeline.inputs.squares import UnusablePictureError


@pytest.mark.parametrize("letter", ["a", "é", "日", "🐧"])
@pytest.mark.parametrize("shift", range(4))
def test_a_long_caption_is_cut_between_letters(tmp_path, caplog, letter, shift):
    path = tmp_path / "long.txt"
    path.write_text("." * shift + letter * (CAPTION_BYTES + 1), encoding="utf-8")
    text = read_caption(path)
    assert set(text) <= {".", letter} and CAPTION_BYTES - 4 <= len(text.encode()) <= CAPTION_BYTES
    assert "is longer than 64 KiB" in caplog.text


def test_a_caption_of_just_that_length_is_whole(tmp_path, caplog):
    path = tmp_path / "full.txt"
    path.write_bytes(b"a" * CAPTION_BYTES)
    assert len(read_caption(path)) == CAPTION_BYTES and not caplog.text
    path.write_bytes(b"a" * (CAPTION_BYTES - 1) + b"\xc3")
    with pytest.raises(UnusablePictureError, match="not UTF-8"):
        read_caption(path)


def table(tmp_path, *lines, name="metadata.jsonl"):
    path = tmp_path / name
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return read_table(path, {tmp_path / "a.png", tmp_path / "sub/b.png"})


def test_a_table_of_captions(tmp_path):
    captions, problems = table(
        tmp_path,
        {"file_name": "a.png", "text": " in ink\n style "},
        b"",
        {"file_name": "sub/b.png", "caption": "in oil style", "text": None, "more": [1]},
    )
    assert captions == {tmp_path / "a.png": "in ink style", tmp_path / "sub/b.png": "in oil style"} and problems == []
    lines = (b"file_name,text", b'a.png,"in ink, style"')
    assert table(tmp_path, *lines, name="metadata.csv") == ({tmp_path / "a.png": "in ink, style"}, [])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "is no JSON"),
        (b"[" * 60_000, "is no JSON"),
        (b"9" * 50_000, "is no JSON"),
        (["a.png", "x"], "is no JSON object"),
        ({"file_name": "a.png"}, "needs file_name and text or caption"),
        ({"file_name": "a.png", "text": 5}, "needs file_name and text or caption"),
        ({"file_name": ["a.png"], "text": "x"}, "needs file_name and text or caption"),
        ({"file_name": "gone.png", "text": "x"}, "names no picture that is here, 'gone.png'"),
        ({"file_name": "/etc/passwd", "text": "x"}, "names no picture that is here"),
        ({"file_name": "a\0.png", "text": "x"}, "names no picture that is here"),
        ({"file_name": "x" * 5000, "text": "x"}, "names no picture that is here"),
    ],
)
def test_a_line_that_cannot_be_used_is_said_and_the_others_are_used(tmp_path, line, problem):
    captions, problems = table(tmp_path, line, {"file_name": "a.png", "text": "in ink style"})
    assert len(problems) == 1 and problems[0].startswith(f"line 1: {problem}") and len(problems[0]) < 200
    assert captions == {tmp_path / "a.png": "in ink style"}


def test_a_table_that_is_no_text_is_said(tmp_path):
    assert table(tmp_path, b"\xff\xfe{\0") == ({}, ["is not UTF-8 text"])
    captions, problems = table(tmp_path, b'file_name,text\na.png,"open', name="metadata.csv")
    assert captions == {} and problems[0].startswith("cannot be read")


@pytest.mark.parametrize("file", ["x" * 5000, "a\nb.png", "../../etc/passwd", "gone.png"])
def test_an_attribution_may_name_anything(tmp_path, caplog, file):
    (tmp_path / "attribution.csv").write_text(f'file,licence,source\n"{file}",MIT,\n')
    assert read_attribution(tmp_path) == {file: ("MIT", "")}
    if not file.startswith(".."):
        assert "names files that are not there" in caplog.text and "\nb.png" not in caplog.text and len(caplog.text) < 600


def test_a_malformed_attribution_is_an_error(tmp_path):
    (tmp_path / "attribution.csv").write_bytes(b"file,licence,source\ncaf\xe9.png,MIT,me\n")
    with pytest.raises(PicturesError, match="cannot be read as CSV in UTF-8"):
        read_attribution(tmp_path)
