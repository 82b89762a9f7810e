"""A small library's pictures."""

from pathlib import Path

import pytest

from tests.library.helpers import folder


@pytest.fixture
def shelf(tmp_path) -> Path:
    """A folder with two contents, two styles, a counterpart of each and the table of the first four."""
    for number, name in enumerate(("cup", "hat", "ink", "oil", "koala", "noto")):
        folder(tmp_path / name, (40 * number, 200 - 30 * number, 90))
    rows = ["kind,path,noun", *(f"content,{tmp_path / name}," for name in ("cup", "hat"))]
    (tmp_path / "library.csv").write_text("\n".join([*rows, *(f"style,{tmp_path / name},toy" for name in ("ink", "oil"))]))
    return tmp_path
