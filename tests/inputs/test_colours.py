"""Colour profiles and modes: against the formulas, and a profile that means nothing changes nothing."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from b4m_pipeline.inputs.colours import rgb_or_rgba, to_srgb
from tests.inputs.helpers import ADOBE, DISPLAY_P3, SRGB, noise, profile

COLOURS = [(200, 100, 50), (40, 180, 90), (255, 255, 255), (0, 0, 0), (128, 128, 128)]


def srgb_of(colour, primaries, gamma):
    """The formula: linear light, XYZ of D50, sRGB's primaries and curve."""
    linear = (np.array(colour) / 255) ** gamma
    light = np.clip(np.linalg.solve(np.array(SRGB).T, np.array(primaries).T @ linear), 0, 1)
    coded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return np.round(255 * coded)


def with_profile(image, data):
    image.info["icc_profile"] = data
    return image


@pytest.mark.parametrize("primaries", [ADOBE, DISPLAY_P3], ids=["adobe", "p3"])
@pytest.mark.parametrize("colour", COLOURS)
def test_wide_colours_become_those_of_srgb(primaries, colour):
    image, remark = to_srgb(with_profile(Image.new("RGB", (2, 2), colour), profile(primaries)))
    np.testing.assert_allclose(image.getpixel((0, 0)), srgb_of(colour, primaries, 2.2), atol=3)
    assert remark == "" and image.mode == "RGB"
    if len(set(colour)) > 1:
        assert np.abs(np.array(image.getpixel((0, 0))) - colour).max() > 5


@pytest.mark.parametrize(
    "data", [ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), None], ids=["srgb", "none"]
)
def test_srgb_by_any_name_leaves_every_number(data):
    before = noise((16, 16), 0)
    image, remark = to_srgb(with_profile(before.copy(), data) if data else before)
    assert remark == "" and image.tobytes() == before.tobytes()


def test_alpha_stays_and_palettes_and_greys_are_converted():
    cut_out = Image.new("RGBA", (2, 2), (200, 100, 50, 77))
    image, _ = to_srgb(with_profile(cut_out, profile()))
    assert image.mode == "RGBA" and image.getpixel((0, 0))[3] == 77
    np.testing.assert_allclose(image.getpixel((0, 0))[:3], srgb_of((200, 100, 50), ADOBE, 2.2), atol=3)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([9, 9, 9, 200, 100, 50])
    assert to_srgb(with_profile(palette, profile()))[0].getpixel((0, 0)) == image.getpixel((0, 0))[:3]
    for mode, value in (("L", 128), ("I;16", 32896), ("LA", (128, 255))):
        linear, remark = to_srgb(with_profile(Image.new(mode, (2, 2), value), profile(gamma=1.0, space=b"GRAY")))
        assert remark == "" and abs(linear.getpixel((0, 0))[0] - 188) <= 1  # half the light


@pytest.mark.parametrize(
    ("mode", "data"),
    [
        ("RGB", b"x"),
        ("RGB", profile()[:200]),
        ("RGB", profile(space=b"GRAY")),
        ("CMYK", profile()),
        ("CMYK", profile(space=b"CMYK")),  # without the tables that ink needs
        ("RGB", profile(space=b"Lab ")),
        ("RGB", b"\0" * 10_000),
    ],
)
def test_a_profile_that_cannot_be_used_is_said(mode, data):
    before = Image.new(mode, (2, 2))
    image, remark = to_srgb(with_profile(before.copy(), data))
    assert remark.startswith("its colour profile cannot be used and sRGB is assumed") and "\n" not in remark
    assert image.tobytes() == before.convert("RGB").tobytes()


def test_lab_is_converted(tmp_path):
    Image.new("LAB", (2, 2), (137, 128, 128)).save(tmp_path / "grey.tiff")  # L* = 53.6, no colour
    with Image.open(tmp_path / "grey.tiff") as image:
        assert image.mode == "LAB"
        assert np.abs(np.array(rgb_or_rgba(image).getpixel((0, 0))) - 128).max() <= 2


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 127.5, 255.0], [0, 128, 255]),
        ([-5.0, 0.5, np.inf], [0, 128, 255]),
        ([np.nan, 0.25, 1.0], [0, 64, 255]),
        ([-np.inf, 2e6, 1e6], [0, 255, 128]),
        ([np.nan, np.nan, np.nan], [0, 0, 0]),
    ],
)
def test_greys_of_floating_point_are_scaled_whatever_is_in_them(values, expected):
    grey = rgb_or_rgba(Image.fromarray(np.array([values], np.float32)))
    np.testing.assert_allclose(np.asarray(grey)[0, :, 0], expected, atol=1)
