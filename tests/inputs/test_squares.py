"""One file -> one square: every mode, hostile files."""

import contextlib
import hashlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from b4m_pipeline.inputs.params import BucketParams
from b4m_pipeline.inputs.squares import (
    EXTENSIONS,
    HEIC_ENDINGS,
    UnusablePictureError,
    bucket_size,
    cut,
    picture_format,
    read_square,
)
from tests.inputs.helpers import profile

WHITE = (255, 255, 255)


def read(path, resolution=16, background=WHITE, crop="center", max_pixels=1_000_000):
    return read_square(path, resolution, background, crop, max_pixels)


def pixel(image, x=8, y=8):
    return image.getpixel((x, y))


@pytest.fixture
def save(tmp_path):
    def write(image, name, **options):
        path = tmp_path / name
        image.save(path, **options)
        return path

    return write


def test_states_hash_and_size_of_the_original(save):
    path = save(Image.new("RGB", (40, 30), "red"), "a.png")
    square = read(path)
    assert square.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (square.width, square.height) == (40, 30)
    assert (square.image.mode, square.image.size) == ("RGB", (16, 16))


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (10, 200, 30), (10, 200, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (80, 255), (80, 80, 80)),
        ("RGBA", (200, 0, 0, 255), (200, 0, 0)),
        ("RGBA", (200, 0, 0, 128), (100, 0, 127)),  # half over blue
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("I", 20000, (78, 78, 78)),
        ("I", 100, (100, 100, 100)),
        ("F", 0.5, (128, 128, 128)),
        ("I;16", 0x8000, (128, 128, 128)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 200, (1, 1, 1)),  # nearly black, whatever the brightest pixel is
    ],
)
def test_every_mode_becomes_rgb(mode, colour, expected):
    square = cut(Image.new(mode, (20, 20), colour), (16, 16), (0, 0, 255), "center")
    assert square.mode == "RGB"
    np.testing.assert_allclose(pixel(square), expected, atol=1)


def test_16_bit_and_cmyk_files(save):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    grey = read(save(Image.fromarray(ramp), "deep.png"), resolution=64)
    np.testing.assert_allclose(np.asarray(grey.image)[..., 0], ramp / 257, atol=1)
    cmyk = read(save(Image.new("CMYK", (32, 32), (255, 0, 0, 0)), "ink.jpg"))
    np.testing.assert_allclose(pixel(cmyk.image), (0, 255, 255), atol=3)


def test_palette_with_a_transparent_colour(save):
    image = Image.new("P", (20, 20), 1)
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.paste(0, (0, 0, 10, 20))
    square = read(save(image, "palette.png", transparency=0), background=(0, 255, 0)).image
    assert pixel(square, 2) == (0, 255, 0)
    assert pixel(square, 13) == (200, 0, 0)


def test_hidden_colours_leave_no_fringe():
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))  # black where nothing is seen
    image.paste((255, 255, 255, 255), (16, 16, 49, 49))
    assert np.asarray(cut(image, (16, 16), WHITE, "center")).min() >= 254


def test_rotated_by_exif(save):
    image = Image.new("RGB", (40, 20), "red")
    image.paste((0, 0, 255), (0, 0, 20, 20))  # blue on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise: left becomes top
    square = read(save(image, "phone.png", exif=exif), crop="pad")
    assert (square.width, square.height) == (20, 40)
    assert pixel(square.image, 8, 3)[2] > 200
    assert pixel(square.image, 8, 12)[0] > 200


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_crop_and_pad(mode):
    wide = Image.new(mode, (60, 20), "red")
    wide.paste((0, 255, 0), (20, 0, 40, 20))
    cropped = np.asarray(cut(wide, (12, 12), WHITE, "center"))
    assert (cropped[..., 1] > 200).mean() > 0.8  # green only, but for the resampling of its borders
    padded = cut(wide, (12, 12), WHITE, "pad")
    assert pixel(padded, 6, 0) == WHITE
    assert pixel(padded, 6, 6)[1] > 200
    assert pixel(padded, 0, 6)[0] > 200
    assert pixel(padded, 0, 6)[1] < 90


def test_a_long_strip_is_padded_without_filling_memory():
    assert cut(Image.new("L", (400_000, 1), 0), (16, 16), WHITE, "pad").size == (16, 16)


def png_header(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def test_a_huge_picture_is_refused_by_its_header(tmp_path, monkeypatch):
    path = tmp_path / "huge.png"
    path.write_bytes(png_header(12_000, 12_000))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(UnusablePictureError, match=r"12000 x 12000 = 144.0 million .* more than ingestion.max_pixels"):
        read(path)


def test_a_decompression_bomb_is_refused(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(60_000, 60_000))
    with pytest.raises(UnusablePictureError, match="too large"):
        read(path, max_pixels=10**12)


def test_damaged_files_are_refused_with_a_reason(tmp_path, save):
    empty = tmp_path / "empty.png"
    empty.touch()
    text = tmp_path / "text.jpg"
    text.write_text("not a picture")
    whole = save(Image.effect_noise((64, 64), 50), "whole.jpg").read_bytes()
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(whole[: len(whole) // 2])
    lying = tmp_path / "lying.png"
    lying.write_bytes(png_header(500, 500))
    postscript = tmp_path / "program.png"
    postscript.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for path, reason in (
        (empty, "empty file"),
        (text, "known format"),
        (cut, "unreadable"),
        (lying, "unreadable"),
        (postscript, "known format"),
    ):
        with pytest.raises(UnusablePictureError, match=reason):
            read(path)


@pytest.mark.parametrize("ending", [e for e in EXTENSIONS if e not in (".apng", *HEIC_ENDINGS)])
def test_every_ending_is_read(tmp_path, ending):
    formats = Image.registered_extensions()
    path = tmp_path / f"red{ending.upper()}"
    Image.new("1" if ending == ".pbm" else "RGB", (32, 32), 1 if ending == ".pbm" else "red").save(
        path,
        format=formats.get(ending, "JPEG"),  # .jif, .pjpeg and .pjp are JPEGs too
    )
    expected = (255, 255, 255) if ending == ".pbm" else (254, 0, 0)
    np.testing.assert_allclose(pixel(read(path).image), expected, atol=4)


def test_heic_is_read_where_a_library_does(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif", reason="HEIC needs pillow-heif")
    path = tmp_path / "photo.HEIC"
    pillow_heif.from_pillow(Image.new("RGB", (64, 64), "red")).save(path)
    np.testing.assert_allclose(pixel(read(path).image), (255, 0, 0), atol=4)


def test_heic_without_a_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("b4m_pipeline.inputs.squares._readable", lambda: ("JPEG", "PNG"))
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(UnusablePictureError, match="pip install pillow-heif"):
        read(tmp_path / "photo.heic")


def test_bytes_are_no_targa_unless_the_ending_says_so(save):
    data = save(Image.new("RGB", (20, 20), "red"), "a.tga").read_bytes()
    path = save(Image.new("RGB", (20, 20), "red"), "a.png")
    path.write_bytes(data)
    with pytest.raises(UnusablePictureError, match="known format"):
        read(path)
    assert picture_format(path) is None


def test_an_icon_that_holds_more_than_it_says_is_refused(tmp_path, save):
    large = save(Image.new("RGB", (600, 600), "red"), "large.png").read_bytes()
    path = tmp_path / "a.ico"  # one entry of 16 x 16 pixels, which is a PNG of 600 x 600
    path.write_bytes(struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(large), 22) + large)
    with pytest.raises(UnusablePictureError, match="600 x 600 = 0.4 million pixels"):
        read(path, max_pixels=300_000)


def test_a_profile_is_heeded_and_one_that_cannot_be_is_remarked_on(save):
    image = Image.new("RGB", (20, 20), (200, 100, 50))
    wide = read(save(image, "wide.png", icc_profile=profile()))
    assert wide.remark == "" and wide.image.getpixel((5, 5))[0] > 215
    plain = read(save(image, "plain.png", icc_profile=b"no profile"))
    assert "colour profile" in plain.remark and plain.image.getpixel((5, 5)) == (200, 100, 50)


@pytest.mark.parametrize(
    ("size", "crop", "buckets", "factor"),
    [
        ((8, 8), "center", None, 2.0),
        ((8, 80), "center", None, 2.0),
        ((8, 80), "pad", None, 0.2),
        ((32, 64), "center", None, 0.5),
        ((8, 16), "center", BucketParams(step=8, max_ratio=4.0), 1.5),  # to 8 x 24
    ],
)
def test_enlargement_is_that_of_a_side(save, size, crop, buckets, factor):
    square = read_square(save(Image.new("RGB", size), "a.png"), 16, WHITE, crop, 10**6, buckets)
    assert square.enlargement == pytest.approx(factor)


@pytest.mark.parametrize("ending", ["png", "avif", "bmp", "gif", "heic", "ico", "jpg", "ppm", "tga", "tiff", "webp"])
def test_flipped_bytes_never_end_in_another_error(save, ending):
    if ending == "heic":
        pytest.importorskip("pillow_heif", reason="HEIC needs pillow-heif").register_heif_opener()
    path = save(Image.effect_noise((16, 16), 80).convert("RGB"), f"flipped.{ending}")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        path.write_bytes(data)
        with contextlib.suppress(UnusablePictureError):  # it may be a picture still; any other error is ours
            assert read(path).image.size == (16, 16)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tiff"])
def test_animations_and_pages_are_refused(save, name):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "green", "blue")]
    path = save(frames[0], name, save_all=True, append_images=frames[1:])
    with pytest.raises(UnusablePictureError, match="(animated|several pages): 3 frames"):
        read(path)


def test_a_still_gif_is_a_picture(save):
    assert pixel(read(save(Image.new("RGB", (20, 20), "red"), "still.gif")).image) == (255, 0, 0)


def test_an_invisible_picture_is_refused(save):
    with pytest.raises(UnusablePictureError, match="fully transparent"):
        read(save(Image.new("RGBA", (20, 20), (9, 9, 9, 0)), "ghost.png"))
    beside = Image.new("RGBA", (256, 64))
    beside.paste((255, 0, 0, 255), (0, 0, 40, 64))
    with pytest.raises(UnusablePictureError, match="nothing of it is left after the crop"):
        read(save(beside, "beside.png"))
    assert pixel(read(save(beside, "beside.png"), crop="pad").image, 1) == (255, 0, 0)


def test_greys_of_16_bits_with_a_transparent_one_are_read(save):
    square = read(save(Image.new("I;16", (20, 20), 32896), "grey.png", transparency=5))
    assert pixel(square.image) == (128, 128, 128) and square.mask is None


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (800, 800, (1024, 1024)),
        (1920, 1080, (1344, 768)),
        (1080, 1920, (768, 1344)),
        (3000, 2000, (1216, 832)),
        (400_000, 1, (1408, 704)),
        (1, 400_000, (704, 1408)),
    ],
)
def test_a_picture_gets_the_bucket_of_its_shape(width, height, expected):
    assert bucket_size(width, height, 1024, BucketParams()) == expected


@pytest.mark.parametrize(("resolution", "step", "ratio"), [(1024, 64, 2.0), (512, 64, 1.1), (64, 16, 4.0), (32, 32, 3.0)])
def test_buckets_hold_to_step_area_and_ratio(resolution, step, ratio):
    buckets = BucketParams(step=step, max_ratio=ratio)
    for width, height in [(1, 1), (3, 2), (2, 3), (7, 1), (1, 50), (1001, 1000)]:
        wide, high = bucket_size(width, height, resolution, buckets)
        assert wide % step == high % step == 0
        assert wide * high <= resolution**2 and max(wide / high, high / wide) <= ratio


@pytest.mark.parametrize("crop", ["center", "pad"])
def test_a_bucket_keeps_what_a_square_would_cut_off(tmp_path, crop):
    image = Image.new("RGB", (166, 100), "white")
    image.paste((255, 0, 0), (0, 0, 12, 100))  # at the left edge
    path = tmp_path / "wide.png"
    image.save(path)
    square = read_square(path, 64, WHITE, crop, 10**6, BucketParams(step=16, max_ratio=3.0))
    assert square.image.size == (80, 48) and (square.width, square.height) == (166, 100)
    assert pixel(square.image, 0, 24)[1] < 100
    assert pixel(read_square(path, 64, WHITE, "center", 10**6).image, 0, 24)[1] > 200
