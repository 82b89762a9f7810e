"""What all sheets share."""

import pytest
from PIL import Image

from b4m_pipeline.common.sheets import in_cell


@pytest.mark.parametrize(("size", "filled", "empty"), [((40, 20), (2, 50), (50, 2)), ((20, 40), (50, 2), (2, 50))])
def test_a_picture_keeps_its_shape_in_a_cell(size, filled, empty) -> None:
    cell = in_cell(Image.new("RGB", size, "red"), 100)
    assert cell.size == (100, 100)
    assert cell.getpixel(filled) == (255, 0, 0) and cell.getpixel(empty) == (255, 255, 255)


def test_a_square_fills_its_cell() -> None:
    picture = Image.effect_noise((64, 64), 80).convert("RGBA")
    expected = picture.convert("RGB").resize((112, 112), Image.Resampling.BICUBIC)
    assert in_cell(picture, 112).tobytes() == expected.tobytes()
