"""Bounds of what the page may ask for."""

import pytest
from pydantic import ValidationError

from b4m_pipeline.studio.asked import ConceptRequest, DrawingRequest, ExportRequest
from tests.studio.conftest import CONTENT, MADE, STYLE, asked


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"content": "/etc/passwd"}, "pattern"),
        ({"content": "models:/b4m-content-cup@candidate"}, "pattern"),
        ({"style": None}, "choose a content and a style"),
        ({"ways": ["make"]}, "no made adapter"),
        ({"ways": ["zip"]}, "Input should be"),
        ({"ways": ["halves", "halves"]}, "twice"),
        ({"prompt": "  "}, "pattern"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"content_strength": float("nan")}, "finite"),
        ({"content_strength": 4.5}, "less than or equal to 4"),
        ({"grid": [0.5, 1.0], "ways": ["halves", "sum"]}, "one method"),
        ({"grid": [1.0, 1.0]}, "each strength once"),
        ({"ways": ["halves", "sum", "ties", "dare", "svd"], "images": 16}, "80 pictures at once"),
        ({"surprise": 1}, "Extra inputs"),
    ],
)
def test_what_cannot_be_drawn_is_said(changes, said) -> None:
    with pytest.raises(ValidationError, match=said):
        asked(**changes)


def test_a_request_knows_its_number_of_pictures() -> None:
    assert asked(ways=["halves", "make"], adapter=MADE, images=3).number == 6
    assert asked(grid=[0.5, 1.0, 1.5], images=3).number == 9
    assert DrawingRequest(adapter=CONTENT, ways=["alone"], prompt="x", steps=1, guidance_scale=1).number == 1
    assert asked(content=CONTENT, style=STYLE).number == 1


def test_names_have_no_markup_and_no_paths() -> None:
    for name in ("<b>cup</b>", "../cup", "a b"):
        with pytest.raises(ValidationError):
            ConceptRequest(path="x", name=name)
        with pytest.raises(ValidationError):
            ExportRequest(name=name)
    assert ConceptRequest(path="x", noun="toy car").given() == {"path": "x", "noun": "toy car"}
