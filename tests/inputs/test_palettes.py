"""A content's picture takes the style's colours and keeps its shape."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from b4m_pipeline.inputs.palettes import in_colours_of, prescribed

SIDE = 64


def thing(fill, line, ground, shape="ellipse") -> Image.Image:
    """A filled shape with a thick outline on a ground."""
    image = Image.new("RGB", (SIDE, SIDE), ground)
    getattr(ImageDraw.Draw(image), shape)((12, 12, 51, 51), fill=fill, outline=line, width=6)
    return image


def colour_at(image: Image.Image, place: tuple[int, int]):
    return pytest.approx(image.getpixel(place), abs=20)


CONTENT = thing((250, 200, 40), (140, 90, 60), "white")
NIGHT = [thing("white", "white", (10, 10, 20), shape) for shape in ("rectangle", "ellipse")]
FLAT = [thing((40, 130, 255), "black", "white", shape) for shape in ("rectangle", "ellipse")]
OWN = [thing(fill, line, "beige") for fill, line in (("orange", "red"), ("darkblue", "black"), ("palegreen", "green"))]
INSIDE, LINE, CORNER = (32, 32), (14, 32), (2, 2)


def test_white_on_black_turns_ground_and_thing():
    drawn = in_colours_of([CONTENT], NIGHT, 1)[0]
    assert all(colour_at(drawn, place) == (255, 255, 255) for place in (INSIDE, LINE))
    assert colour_at(drawn, CORNER) == (10, 10, 20)


def test_fill_becomes_fill_and_line_line_whatever_their_hues():
    drawn = in_colours_of([CONTENT], FLAT, 1)[0]
    assert colour_at(drawn, INSIDE) == (40, 130, 255)
    assert colour_at(drawn, LINE) == (0, 0, 0)
    assert colour_at(drawn, CORNER) == (255, 255, 255)


def test_where_things_have_colours_of_their_own_only_the_ground_changes():
    assert prescribed(OWN) == 0 and prescribed(FLAT) == prescribed(NIGHT) == 1
    assert prescribed(OWN[:1]) == 0  # one picture does not tell
    drawn = in_colours_of([CONTENT], OWN, 1)[0]
    assert colour_at(drawn, INSIDE) == (250, 200, 40)
    assert colour_at(drawn, CORNER) == (245, 245, 220)


def test_pictures_take_turns_and_meet_other_models():
    contents = [CONTENT, thing((250, 200, 40), (140, 90, 60), "white", "rectangle")]
    grounds = [thing("white", "white", ground) for ground in ("black", "navy")]
    drawn = in_colours_of(contents, grounds, 4)
    black = [max(image.getpixel(CORNER)) < 60 for image in drawn]
    square = [image.getpixel((13, 13)) != pytest.approx(image.getpixel(CORNER), abs=30) for image in drawn]
    assert list(zip(square, black, strict=True)) == [(False, True), (True, False), (False, False), (True, True)]


def test_without_an_even_ground_the_whole_picture_takes_the_whole_palette():
    photograph = Image.merge("RGB", [Image.linear_gradient("L").resize((SIDE, SIDE)).rotate(turn) for turn in (0, 90, 180)])
    sepia = [Image.merge("RGB", [Image.effect_noise((SIDE, SIDE), 60).point(lambda v, k=k: int(v * k)) for k in (1, 0.8, 0.5)])]
    drawn = in_colours_of([photograph], sepia * 2, 1)[0]
    red, green, blue = np.asarray(drawn, float).reshape(-1, 3).mean(0)
    assert drawn.size == photograph.size and red > green + 10 > blue + 20


@pytest.mark.parametrize("picture", [Image.new("RGB", (SIDE, SIDE), "red"), Image.new("RGB", (SIDE, SIDE), "black")])
def test_an_empty_picture_does_no_harm(picture):
    assert in_colours_of([picture], FLAT, 2)[1].size == (SIDE, SIDE)
    assert in_colours_of([CONTENT], [picture, picture], 2)[1].size == (SIDE, SIDE)
