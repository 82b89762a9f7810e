"""The shipped pictures: attributed, held out as promised, and made by the committed function."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tools.crafts import CRAFTS

from b4m_pipeline.inputs import filters
from b4m_pipeline.pretrain.corpus import HANDS
from tools import default_input

ROOT = Path(__file__).parents[2]
RAW = ROOT / "data" / "01_raw"
CORPUS = yaml.safe_load((ROOT / "conf/base/parameters_pretrain.yml").read_text())["pretrain"]["corpus"]
FURTHER = [(content, style) for style, contents in default_input.FURTHER_STYLES.items() for content in contents]
SHIPPED = sorted(path for kind in ("contents", "styles", "truth") for path in (RAW / kind).glob("*/*.png"))


def test_contents_and_hands_are_held_out_or_known_as_promised():
    for content, hands in default_input.CONTENTS.items():
        assert content in CORPUS["held_out_contents"]
        assert set(hands) <= set(CORPUS["hands"])
    for hand, contents in default_input.STYLES.items():
        assert hand == "noto" or hand in CORPUS["held_out_hands"]
        assert set(contents) <= set(CORPUS["contents"])
    for hand, contents in default_input.FURTHER_STYLES.items():
        assert hand not in {*CORPUS["hands"], *CORPUS["held_out_hands"], *HANDS, *filters.STYLES}  # no base, and no look
        assert set(contents) <= set(CORPUS["contents"])
    for content, hand in default_input.PAIRS + default_input.DEVELOPMENT_PAIRS + default_input.FURTHER_PAIRS:
        assert content in default_input.CONTENTS
        assert hand in CORPUS["held_out_hands"] or hand in default_input.FURTHER_STYLES
        assert hand not in default_input.CONTENTS[content]  # the truth is not among the references


def test_development_and_reported_pairs_share_neither_content_nor_style():
    tables = default_input.PAIRS + default_input.FURTHER_PAIRS
    for place in (0, 1):
        chosen, reported = ({pair[place] for pair in pairs} for pairs in (default_input.DEVELOPMENT_PAIRS, tables))
        assert not chosen & reported


@pytest.mark.parametrize(
    ("file", "expected"),
    [("base/parameters_benchmark.yml", default_input.PAIRS), ("icons/parameters.yml", default_input.FURTHER_PAIRS)],
)
def test_benchmark_has_the_pairs_of_the_tables(file, expected):
    pairs = yaml.safe_load((ROOT / "conf" / file).read_text())["benchmark"]["pairs"]
    found = [(pair["content"].rsplit("/", 1)[1], pair["style"].rsplit("/", 1)[1]) for pair in pairs]
    assert found == [(content, hand.replace(" ", "-")) for content, hand in expected]


def test_twelve_contents_are_each_in_one_pair_of_the_second_table():
    contents, styles = zip(*default_input.FURTHER_PAIRS, strict=True)
    assert sorted(contents) == sorted(content for content, _ in default_input.PAIRS)
    assert set(styles) == default_input.FURTHER_STYLES.keys() == {*default_input.ICON_SETS, *CRAFTS}


def test_shipped_pictures_are_those_of_the_tables():
    expected = {f"{picture.folder}/{picture.stem}.png" for picture in default_input._pictures()}
    assert {path.relative_to(RAW).as_posix() for path in SHIPPED} == expected
    assert sum(path.stat().st_size for path in SHIPPED) < 3_000_000
    for path in SHIPPED:
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGBA", (128, 128))


def test_every_shipped_picture_is_attributed():
    readme = (RAW / "README.md").read_text(encoding="utf-8")
    for folder in {path.parent for path in SHIPPED}:
        with (folder / "attribution.csv").open() as handle:
            rows = {row["file"]: row for row in csv.DictReader(handle)}
        assert set(rows) == {path.name for path in folder.glob("*.png")}
        for row in rows.values():
            assert f"[{row['licence']}]" in readme
            assert row["source"].split()[0] in readme


@pytest.fixture
def sources(tmp_path):
    """A corpus of the same shape, in which every hand draws every content as a dot."""
    source = tmp_path / "corpus"
    contents = {name for names in default_input.STYLES.values() for name in names} | set(default_input.CONTENTS)
    icons_of: dict[str, set[str]] = {}
    for content, style in [*FURTHER, *default_input.FURTHER_PAIRS]:
        if own := default_input.ICON_SETS.get(style):
            icons_of.setdefault(own.package, set()).add(own.names.get(content, content) + own.ending)
    for package, names in icons_of.items():
        folder = source / "node_modules" / "@iconify-json" / package
        folder.mkdir(parents=True)
        body = '<circle cx="8" cy="8" r="6" fill="currentColor"/>'
        (folder / "icons.json").write_text(json.dumps({"icons": {name: {"body": body} for name in names}, "width": 16}))
        (folder / "info.json").write_text(json.dumps({"license": {"spdx": f"licence-of-{package}"}}))
    contents |= {content for content, _ in FURTHER}
    for number, hand in enumerate(HANDS):
        folder = source / "node_modules" / "@iconify-json" / hand
        folder.mkdir(parents=True)
        body = f'<circle cx="8" cy="8" r="6" fill="rgb({20 * number},90,200)"/>'
        icons = {name: {"body": body} for name in contents}
        (folder / "icons.json").write_text(json.dumps({"icons": icons, "width": 16}))
        (folder / "info.json").write_text(json.dumps({"license": {"spdx": f"licence-of-{hand}"}}))
    words = source / "node_modules" / "emojibase-data" / "en"
    words.mkdir(parents=True)
    (words / "data.json").write_text("[]")
    versions = {f"@iconify-json/{name}": f"1.0.{number}" for number, name in enumerate([*HANDS, *icons_of])}
    (source / "package.json").write_text(json.dumps({"dependencies": versions}))
    return source


def test_export_writes_pictures_texts_and_attribution(sources, tmp_path):
    pytest.importorskip("resvg_py")
    target = tmp_path / "raw"
    written = default_input.export_default_input(sources, target, size=32)
    assert len(written) == len(SHIPPED)
    dot = np.asarray(Image.open(target / "contents/rocket/noto.png"))
    assert dot.shape == (32, 32, 4)
    assert dot[0, 0, 3] == 0
    np.testing.assert_allclose(dot[16, 16], (20, 90, 200, 255), atol=1)
    assert (target / "contents/rocket/noto-v1.txt").read_text() == "old noto\n"
    assert (target / "styles/knit/hot-beverage.txt").read_text() == "hot beverage\n"
    assert not list((target / "truth").rglob("*.txt"))
    rows = list(csv.reader((target / "truth/rocket-wood/attribution.csv").open()))
    source = "twemoji via @iconify-json/twemoji 1.0.0, redrawn as wood by b4m_pipeline"
    assert rows[1] == ["rocket.png", "licence-of-twemoji", source]
    icon = np.asarray(Image.open(target / "styles/lucide/red-apple.png"))
    np.testing.assert_allclose(icon[16, 16], (0x9B, 0x22, 0x26, 255), atol=2)
    assert (icon[16, :, 3] > 127).sum() > (dot[16, :, 3] > 127).sum()  # less margin
    assert (target / "styles/lucide/red-apple.txt").read_text() == "red apple\n"
    rows = list(csv.reader((target / "truth/trophy-lucide/attribution.csv").open()))
    assert rows[1][1] == "licence-of-lucide" and rows[1][2].endswith("enlarged, in #9b2226")
    assert np.asarray(Image.open(target / "truth/penguin-cut-paper/penguin.png"))[0, 0, 3] == 255
    rows = list(csv.reader((target / "styles/cut-paper/attribution.csv").open()))
    assert rows[1][2] == "twemoji via @iconify-json/twemoji 1.0.0, redrawn as cut paper by b4m_pipeline"
