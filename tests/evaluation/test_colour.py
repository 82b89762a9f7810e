"""The measure of colour sees what the networks do not."""

import pytest
from PIL import Image, ImageDraw

from b4m_pipeline.evaluation.colour import palette_likeness, palettes


def square(colour, left=20) -> Image.Image:
    image = Image.new("RGB", (100, 100), "white")
    ImageDraw.Draw(image).rectangle((left, 20, left + 40, 60), fill=colour)
    return image


def alike(first: Image.Image, second: Image.Image) -> float:
    return float(palette_likeness(palettes([first]), palettes([second])))


def test_equal_palettes_are_alike_wherever_the_colours_are():
    assert alike(square("blue"), square("blue")) == 1
    assert alike(square("blue"), square("blue", left=45)) == pytest.approx(1, abs=0.01)
    assert alike(square("blue"), square("blue").resize((333, 333))) == pytest.approx(1, abs=0.05)


def test_another_colour_is_further_than_another_shade():
    blue, shade, yellow = square((20, 60, 220)), square((40, 80, 230)), square((240, 200, 20))
    assert alike(blue, yellow) < alike(blue, shade) - 0.2
    assert alike(blue, Image.new("RGB", (100, 100), "black")) < 0.05


def test_a_black_ground_is_another_palette():
    assert alike(square("white"), square("black")) == alike(square("black"), square("white")) < 0.7
