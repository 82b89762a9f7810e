"""Pictures, side files and folders that are broken or mean harm: what is usable is used, the rest has its reason, nothing of
another folder is read and nothing is written."""

import gzip
import io
import os
import re
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from b4m_pipeline.inputs.folders import Folder, PicturesError, check_folders
from b4m_pipeline.inputs.params import IngestionParams
from tests.conftest import PLAIN_INGESTION
from tests.inputs.helpers import noise, profile

SECRET = "password-of-another-folder"


@pytest.fixture
def folder(tmp_path):
    """Two good pictures, and beside the folder something that is nobody's business."""
    path = tmp_path / "toys"
    path.mkdir()
    for index in range(2):
        noise((32, 32), index).save(path / f"good {index}.png")
    noise((32, 32), 9).save(tmp_path / "outside.png")
    (tmp_path / "outside.txt").write_text(SECRET)
    return path


def check(path, **params):
    own = Folder("content", "toy", "snq", "toy", path, "content.path")
    return check_folders([own], 16, IngestionParams(**PLAIN_INGESTION | {"max_pixels": 1_000_000} | params))


def judged(folder, **params):
    """What is said of the files beside the good pictures: "used", or the reason why not. Nothing in the folder changes."""
    before = sorted((path, os.lstat(path).st_mtime_ns) for path in folder.rglob("*"))
    begun = time.perf_counter()
    checked = check(folder, **params)
    assert time.perf_counter() - begun < 5
    assert before == sorted((path, os.lstat(path).st_mtime_ns) for path in folder.rglob("*"))
    assert SECRET not in checked.manifest.to_csv() + checked.quarantine.to_csv()
    said = dict.fromkeys(checked.manifest.file, "used") | dict(
        zip(checked.quarantine.file, checked.quarantine.reason, strict=True)
    )
    assert all("\n" not in text and len(text) < 600 for text in said.values())
    good = [said.pop(f"good {index}.png") for index in range(2)]
    assert good == ["used", "used"]
    assert len(checked.squares) == len(checked.manifest)
    return said


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width=16, height=16, depth=8, colour=2, *chunks: bytes, data: bytes | None = None) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = zlib.compress(data if data is not None else b"\0" * min((3 * width + 1) * height, 10_000))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def saved(image, ending, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=ending, **options)
    return buffer.getvalue()


def exif(**tags):
    own = Image.Exif()
    own.update({int(name[1:], 16): value for name, value in tags.items()})
    return own


NEGATIVE = b"BM" + struct.pack("<IHHIIiiHHIIIIII", 54, 0, 0, 54, 40, -16, -16, 1, 24, 0, 0, 0, 0, 0, 0)
BOMB = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(30_000_000)))
BOMBS = [chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000)))] * 90
RED = Image.new("RGB", (32, 32), (200, 100, 50))
TEXT_BOMB = PngInfo()
TEXT_BOMB.add_text("Comment", "A" * 900_000, zip=True)
POLYGLOT = saved(RED, "JPEG") + b"<?php system($_GET['x']); ?>" + b"PK\x05\x06" + bytes(18)


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        # Sizes that lie or cannot be
        ("huge.png", png(60_000, 60_000), "too large to decode"),
        ("large.png", png(2_000, 2_000), "4.0 million pixels, more than ingestion.max_pixels"),
        ("zero.png", png(0, 16), "known format"),
        ("negative.bmp", NEGATIVE, "too large to decode"),
        ("short.png", png(500, 500), "unreadable"),
        ("bomb.png", png(900, 900, data=bytes(50_000_000)), "used"),  # deflated zeros behind the last row are not kept
        ("strip.png", saved(Image.new("L", (500_000, 1)), "PNG"), "used"),
        ("column.gif", saved(Image.new("L", (1, 60_000)), "GIF"), "used"),
        ("one.png", saved(Image.new("RGB", (1, 1)), "PNG"), "used"),
        # Bytes of something else
        ("empty.png", b"", "empty file"),
        ("text.jpg", b"not a picture", "no picture in a known format"),
        ("page.png", b"<html><script>alert(1)</script></html>", "no picture in a known format"),
        ("drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", "known format"),
        ("program.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n", "known format"),
        ("document.jpg", b"%PDF-1.7\n1 0 obj<<>>endobj", "known format"),
        ("archive.png", gzip.compress(bytes(10_000)), "known format"),
        ("pickle.png", b"\x80\x04c__builtin__\neval\n", "known format"),
        ("elf.gif", b"\x7fELF" + bytes(100), "known format"),
        ("zeros.bmp", bytes(4096), "known format"),
        ("ones.tiff", b"\xff" * 4096, "known format"),
        ("polyglot.jpg", POLYGLOT, "used"),
        ("gif.jpg", saved(RED, "GIF"), "used"),  # a wrong ending of a known format
        # Damage
        ("cut.jpg", saved(noise((64, 64), 0), "JPEG")[:900], "unreadable"),
        ("cut.webp", saved(noise((64, 64), 0), "WEBP")[:900], "unreadable"),
        ("cut.avif", saved(noise((64, 64), 0), "AVIF")[:300], "known format"),
        ("cut.gif", saved(noise((64, 64), 0), "GIF")[:900], "unreadable: image file is truncated"),
        ("header.png", png()[:20], "unreadable"),
        ("loop.tiff", b"II*\0\x08\0\0\0" + struct.pack("<HHHIIHHIII", 2, 256, 3, 1, 16, 257, 3, 1, 16, 8), "known format"),
        ("crc.png", png()[:-20] + bytes(20), "unreadable"),
        ("colour.png", png(16, 16, 8, 7), "known format"),
        ("depth.png", png(16, 16, 99, 2), "known format"),
        # Several in one
        ("moving.gif", saved(RED, "GIF", save_all=True, append_images=[noise((32, 32), 1)]), "animated: 2 frames"),
        ("pages.tiff", saved(RED, "TIFF", save_all=True, append_images=[noise((32, 32), 1)] * 3), "several pages: 4 frames"),
        ("moving.webp", saved(RED, "WEBP", save_all=True, append_images=[noise((32, 32), 1)]), "animated: 2 frames"),
        ("moving.apng", saved(RED, "PNG", save_all=True, append_images=[noise((32, 32), 1)]), "animated: 2 frames"),
        # Invisible
        ("ghost.png", saved(Image.new("RGBA", (32, 32), (9, 9, 9, 0)), "PNG"), "fully transparent"),
        ("ghost.webp", saved(Image.new("RGBA", (32, 32), (9, 9, 9, 0)), "WEBP", exact=True), "fully transparent"),
        # Metadata
        ("comment.png", saved(RED, "PNG", pnginfo=TEXT_BOMB), "used"),
        ("texts.png", png(16, 16, 8, 2, *BOMBS), "unreadable: Too much memory"),
        ("profile.png", png(16, 16, 8, 2, BOMB), "unreadable: Decompressed data too large"),
        ("noprofile.jpg", saved(RED, "JPEG", icc_profile=b"\xff" * 500), "used"),
        ("inkprofile.jpg", saved(RED, "JPEG", icc_profile=profile(space=b"CMYK")), "used"),
        ("turned.jpg", saved(RED, "JPEG", exif=exif(x0112=99)), "used"),
        ("maker.jpg", saved(RED, "JPEG", exif=exif(x010F="\x1b[2J" + "A" * 20_000)), "used"),
        ("badexif.jpg", saved(RED, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), "used"),
        # Numbers
        ("deep.png", saved(Image.fromarray(np.full((32, 32), 40_000, np.uint16)), "PNG"), "used"),
        ("nan.tiff", saved(Image.fromarray(np.full((32, 32), np.nan, np.float32)), "TIFF"), "used"),
        ("infinite.tiff", saved(Image.fromarray(np.full((32, 32), np.inf, np.float32)), "TIFF"), "used"),
        ("wide.tiff", saved(Image.fromarray(np.full((32, 32), -(2**31), np.int32)), "TIFF"), "used"),
        ("ink.tiff", saved(Image.new("CMYK", (32, 32)), "TIFF"), "used"),
        ("lab.tiff", saved(Image.new("LAB", (32, 32)), "TIFF"), "used"),
        ("bits.pbm", b"P1\n2 2\n0 1 1 0\n", "used"),
        ("bits.ppm", b"P6\n# " + b"c" * 5000 + b"\n2 2\n255\n" + bytes(12), "used"),
        ("numbers.pgm", b"P2\n99999999999999999999 2\n255\n1", "unreadable: b'Token too long"),
        ("white.pgm", b"P5\n4 4\n65535\n" + b"\xff" * 32, "used"),
        ("targa.tga", bytes(100), "known format"),
        ("icon.ico", struct.pack("<HHH", 0, 1, 65535) + bytes(40), "known format"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)  # fmt: skip
def test_a_picture(folder, name, data, expected):
    (folder / name).write_bytes(data)
    assert expected in judged(folder)[name]


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("link.png", "../outside.png"),
        ("link.png", "/etc/passwd"),
        ("link.png", "/dev/zero"),
        ("link.png", "/dev/stdin"),
        ("link.png", "link.png"),
        ("link.png", "nowhere.png"),
        ("link.png", "."),
        ("link", "../outside.png"),
        ("link.png", "sub/../../outside.png"),
        ("good 0.txt", "../outside.txt"),
        ("good 0.caption", "../outside.txt"),
        ("good 0.txt", "/dev/zero"),
        ("metadata.jsonl", "../outside.txt"),
        ("folder", ".."),
    ],
)
def test_a_link(folder, name, target):
    (folder / "sub").mkdir()
    (folder / name).symlink_to(target)
    assert re.match("a link|no regular file|no picture", judged(folder)[name])


@pytest.mark.parametrize(
    ("name", "data", "reason", "caption"),
    [
        ("good 0.txt", b"caf\xe9", "not UTF-8", ""),
        ("good 0.txt", "in ink style".encode("utf-16"), "not UTF-8", ""),
        ("good 0.txt", b"a\0b", "not UTF-8", ""),
        ("good 0.txt", b"", "empty", ""),
        ("good 0.txt", b"\xef\xbb\xbf \r\n", "empty", ""),
        ("good 0.txt", b"\xff" * 200_000, "not UTF-8", ""),
        ("good 0.txt", "\u202eknit \x1b[31mred\x07".encode(), None, "knit [31mred"),
        ("good 0.txt", b"{content.__class__} {0} %s", None, "{content.__class__} {0} %s"),
        ("good 0.txt", "日".encode() * 40_000, None, "日" * 21_845),
        ("good 0.caption", b"in ink style", None, "in ink style"),
        ("good 0-masklabel.png", b"", "empty file", None),
        ("good 0.mask.png", png(60_000, 60_000), "its mask good 0.mask.png: too large", None),
        ("good 0.mask.png", saved(Image.new("L", (32, 32)), "PNG"), "black", None),
        ("good 0.mask.png", saved(Image.new("L", (31, 32), 255), "PNG"), "31 x 32 pixels, the picture 32 x 32", None),
        ("metadata.jsonl", b"\xff", "not UTF-8", ""),
        ("metadata.jsonl", b"[" * 100_000, "is no JSON", ""),
        ("metadata.jsonl", b'{"file_name": "../outside.png", "text": "x"}', "names no picture", ""),
        ("metadata.jsonl", b'{"file_name": "good 0.png", "text": {"a": 1}}', "needs file_name and text", ""),
        ("metadata.csv", b'"', "cannot be read|needs file_name", ""),
        ("metadata.csv", b"file_name,text\ngood 0.png," + b"x" * 200_000, "cannot be read", ""),
    ],
)  # fmt: skip
def test_a_side_file(folder, name, data, reason, caption):
    (folder / name).write_bytes(data)
    checked = check(folder)
    table = checked.manifest.set_index("file").sidecar
    assert (table.get("good 0.png") == caption) if caption is not None else "good 0.png" not in table
    said = checked.quarantine.reason.tolist()
    assert len(said) == (reason is not None)
    if reason:
        assert re.search(reason, said[0]) and len(said[0]) < 300 and "\n" not in said[0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"file,licence,source\n\xff,MIT,me\n", "cannot be read as CSV in UTF-8"),
        (b"name,license\nx,MIT\n", "expected file, licence, source"),
        (b'file,licence,source\n"open', "cannot be read as CSV"),
        (b"file,licence,source\n" + b"x" * 200_000 + b",MIT,me\n", "cannot be read as CSV"),
        (b"file,licence,source\n" + b"x" * 5000 + b",MIT,me\n", None),
        (b"file,licence,source\n../outside.png,MIT,me\n", None),
        (b"file,licence,source\ngood 0.png\n", None),
        (b"file,licence,source\ngood 0.png,MIT,me,more,and more\n", None),
        (b"", None),
        (b"\xef\xbb\xbffile,licence,source\r\n", None),
    ],
)
def test_an_attribution(folder, data, reason):
    (folder / "attribution.csv").write_bytes(data)
    if reason is None:
        assert judged(folder) == {}
        return
    with pytest.raises(PicturesError, match=reason) as error:
        check(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "..png", " .png", "%2e%2e%2f.png", "a\\..\\b.png", "con.png", "-rf.png", "$(reboot).png", "{0}.png", "a\nb.png",
        "=cmd()|x.png", "\x1b[2J.png", "日本語.png", "👩‍👩‍👧.png", "\u202egnp.png", "x" * 251 + ".png", "'; DROP TABLE--.png",
    ],
)  # fmt: skip
def test_a_name(folder, name):
    noise((32, 32), 5).save(folder / "x.png")
    os.replace(folder / "x.png", folder / name)
    if name.startswith("."):  # hidden
        assert judged(folder) == {}
        return
    checked = check(folder)
    (key,) = set(checked.squares) - {"content/toy/good-0", "content/toy/good-1"}
    assert key.isascii() and key.replace("content/toy/", "", 1).replace("-", "").replace("_", "").isalnum() and len(key) < 110
    assert all(file.isprintable() for file in checked.manifest.file)


def test_a_folder_of_folders_as_deep_as_names_go(folder):
    deep = folder.joinpath(*["d" * 20] * 60)
    deep.mkdir(parents=True)
    noise((32, 32), 5).save(deep / "deep.png")
    assert list(judged(folder).values()) == ["used"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="an administrator may read everything")
@pytest.mark.parametrize("name", ["closed.png", "good 0.txt"])
def test_a_file_that_may_not_be_read(folder, name):
    (folder / name).write_bytes(b"x")
    (folder / name).chmod(0)
    assert "ermission denied" in judged(folder)[name]
