"""Texts that a parameter names, and what is no text."""

import os
import sys
from pathlib import Path

import pytest

from b4m_pipeline.common import texts
from b4m_pipeline.common.texts import text_of


def test_a_text_is_read_without_its_mark(tmp_path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffa grelk cup\n", encoding="utf-8")
    assert text_of(tmp_path / "a.txt") == "a grelk cup\n"


@pytest.mark.skipif(sys.platform == "win32", reason="has neither")
def test_what_has_no_end_is_not_read(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="no regular file"):
            text_of(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(texts, "MOST_BYTES", 5)
    (tmp_path / "a.txt").write_text("six...")
    with pytest.raises(OSError, match="at most 0 are read"):
        text_of(tmp_path / "a.txt")
