"""Can the measures tell right from wrong?"""

import pytest
from PIL import Image

from b4m_pipeline.benchmark.results import References
from b4m_pipeline.benchmark.validation import _turn_hue, validate_measures
from tests.benchmark.helpers import EVALUATION, disc, square


def test_measures_are_validated_on_true_drawings(references):
    other = References([disc((200, 0, 0)), disc((0, 0, 200))], [square((0, 90, 0), 7)], [disc((150, 0, 0), 7)])
    found = validate_measures({"a": references, "b": other}, EVALUATION).set_index("measure")
    assert found.loc["content", "right"] == 1 and found.loc["content", "comparisons"] == 2
    assert found.loc["content_kept", "right"] == 1 and {"style", "style_kept", "colour", "s_harm", "kept"} <= set(found.index)
    swapped = References(references.content, references.style, other.truth)  # a truth that is the other pair's
    wrong = validate_measures({"a": swapped, "b": other}, EVALUATION).set_index("measure")
    assert wrong.loc["content", "right"] == 0.5
    assert validate_measures({"a": References(references.content, references.style, [])}, EVALUATION).empty


def test_recoloured_drawings_lose_their_colours_where_they_have_any():
    red, grey = (References([square(colour)], [disc(colour)], [square(colour, 3)]) for colour in ((200, 0, 0), (99, 99, 99)))
    found = validate_measures({"a": red}, EVALUATION).set_index("measure")
    assert found["right"].to_dict() == {"colour, recoloured": 1, "truth_colour, recoloured": 1}
    assert found["comparisons"].tolist() == [3, 3]
    assert validate_measures({"a": grey}, EVALUATION)["comparisons"].tolist() == [1, 1]  # only inverted it is another picture


def test_hues_turn_by_thirds() -> None:
    image = Image.new("RGB", (1, 1), (200, 0, 0))
    for thirds, wanted in ((1, (0, 200, 0)), (2, (0, 0, 200))):
        assert _turn_hue(image, thirds).getpixel((0, 0)) == pytest.approx(wanted, abs=3)
