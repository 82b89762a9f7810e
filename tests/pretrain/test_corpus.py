"""Splits and pictures of the embedded base's corpus."""

import json

import numpy as np
import pytest
from PIL import Image

from b4m_pipeline.pretrain.corpus import CorpusError, build, composite, shrink, split_of

KNOWN, HELD, HELD_HANDS = {"cat", "house", "key"}, {"penguin"}, {"openmoji"}


def split(content: str, hand: str, known=frozenset(KNOWN)) -> str:
    return split_of(content, hand, HELD, HELD_HANDS, set(known), 0.2)


def test_what_is_held_out_is_never_trained_on() -> None:
    assert split("penguin", "noto") == "held_out_content"
    assert split("penguin", "openmoji") == "held_out_both"
    assert split("cat", "openmoji") == "held_out_hand"
    assert split("unicorn", "noto") == "wide"


def test_pairs_keep_their_split_when_contents_are_added() -> None:
    hands = [f"hand {i}" for i in range(200)]
    before = {(c, h): split(c, h) for c in KNOWN for h in hands}
    after = {(c, h): split(c, h, KNOWN | {"dog", "bus"}) for c in KNOWN for h in hands}
    assert before == after
    share = sum(value == "unseen_pair" for value in before.values()) / len(before)
    assert 0.15 < share < 0.25 and set(before.values()) == {"train", "unseen_pair"}


def test_missing_sources_are_named_with_the_remedy(tmp_path) -> None:
    options = {"size": 32, "procedural_from": "twemoji", "unseen_share": 0.1, "min_hands": 1, "processes": 1}
    with pytest.raises(CorpusError, match="make corpus"):
        build(tmp_path, contents=["cat"], held_out_contents=[], hands=["twemoji"], held_out_hands=[], **options)
    with pytest.raises(CorpusError, match="Unknown hands"):
        build(tmp_path, contents=["cat"], held_out_contents=[], hands=["nobody"], held_out_hands=[], **options)


def make_sources(folder, sets: dict[str, list[str]]) -> None:
    """Vector sets as npm installs them: every icon is a red square."""
    for hand, names in sets.items():
        place = folder / "node_modules/@iconify-json" / hand
        place.mkdir(parents=True)
        body = {"body": '<rect x="4" y="4" width="8" height="8" fill="#f00"/>'}
        (place / "icons.json").write_text(json.dumps({"icons": dict.fromkeys(names, body), "width": 16, "height": 16}))
        (place / "info.json").write_text(json.dumps({"license": {"spdx": "CC0-1.0"}}))
    words = folder / "node_modules/emojibase-data/en"
    words.mkdir(parents=True)
    (words / "data.json").write_text(json.dumps([{"label": "red heart", "tags": ["love"]}, {"label": "cat face"}]))


def test_every_set_is_found_by_the_same_names_and_every_style_gets_its_own_drawing(tmp_path) -> None:
    make_sources(tmp_path, {"twemoji": ["red-heart", "cat-face"], "fxemoji": ["redheart"]})
    options = {"size": 32, "procedural_from": "twemoji", "unseen_share": 0.0, "min_hands": 9, "processes": 1}
    contents, hands = ["red-heart", "cat-face"], ["twemoji", "fxemoji", "sketch", "alba"]
    drawings = build(tmp_path, contents=contents, held_out_contents=[], hands=hands, held_out_hands=[], **options)
    drawn = list(zip(drawings.table.content, drawings.table["style"], strict=True))
    assert sorted(drawn) == sorted(
        [("red heart", style) for style in ("twemoji", "firefox", "sketch", "alba")]
        + [("cat face", style) for style in ("twemoji", "sketch", "alba")]
    )
    plain = drawings.rgba[[style in ("twemoji", "firefox") for _, style in drawn]]
    assert (plain == plain[0]).all() and plain[0, 16, 16].tolist() == [255, 0, 0, 255]
    for style in ("sketch", "alba"):
        own = drawings.rgba[[name == style for _, name in drawn]]
        assert not np.array_equal(own[0], plain[0])
    assert drawings.digest() == drawings.select(np.ones(len(drawn), bool)).digest()
    assert np.array_equal(drawings.on((1, 2, 3)), composite(drawings.rgba, np.array([1, 2, 3])))


def test_compositing_and_shrinking_leave_no_fringe() -> None:
    rgba = np.zeros((64, 64, 4), np.uint8)  # hidden black under transparency
    rgba[16:48, 16:48] = (255, 0, 0, 255)
    small = shrink(rgba, 16)
    white = composite(small, np.array([255, 255, 255]))
    assert white[8, 8].tolist() == [255, 0, 0] and white[0, 0].tolist() == [255, 255, 255]
    edge = small[(small[..., 3] > 0) & (small[..., 3] < 255)]
    assert (edge[:, 0] > 200).all()


def test_render_keeps_a_drawings_proportions() -> None:
    pytest.importorskip("resvg_py")
    from b4m_pipeline.pretrain.corpus import render_svg

    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 20"><rect width="40" height="20" fill="red"/></svg>'
    rgba = render_svg(svg, 32)
    assert rgba.shape == (32, 32, 4)
    box = Image.fromarray(rgba).getchannel("A").getbbox()
    assert box == (0, 8, 32, 24)
