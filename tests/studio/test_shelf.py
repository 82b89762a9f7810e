"""The registry as cards."""

import numpy as np
import pytest
from PIL import Image

from b4m_pipeline.registry.promotion import promote
from b4m_pipeline.studio import shelf
from b4m_pipeline.studio.asked import CardsRequest
from tests.studio.conftest import CONTENT, MADE, SIDE, STYLE

CARD = """## Pictures

| role | number | licences | sha256 begin with |
|---|---|---|---|
| content | 6 | Apache-2.0 (2), MIT (4) | 6bf4d48b |
| counterpart style | 15 | CC-BY-4.0 (15) | d00d855d |
"""


def found(base: str, **asked) -> list[shelf.Card]:
    return shelf.cards(base, CardsRequest(**asked))[0]


def test_licences_are_those_of_the_concepts_own_pictures() -> None:
    assert shelf.licences(CARD) == "Apache-2.0 (2), MIT (4)"
    assert shelf.licences(CARD.replace("counterpart style", "style")) == "Apache-2.0 (2), MIT (4); CC-BY-4.0 (15)"
    assert shelf.licences("no table") == ""


def test_a_card_says_what_a_version_is(registry, canvas) -> None:
    promote("b4m-content-cup")
    cards = {card.uri: card for card in found(canvas.base)}
    assert set(cards) == {CONTENT, STYLE, MADE}
    content, made = cards[CONTENT], cards[MADE]
    assert (content.kind, content.concept, content.token, content.noun) == ("content", "cup", "snq", "toy")
    assert set(content.aliases) == {"candidate", "champion"} and content.ours
    assert made.parents == [CONTENT, STYLE] and (made.content, made.style) == ("cup", "ink")
    assert made.frame == content.frame == cards[STYLE].frame and made.prompt == "a snq toy in w@z style"
    assert not any(card.ours for card in found("another@000000000000"))


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ({"kind": "style"}, {"b4m-style-ink"}),
        ({"kind": "make", "content": "cup", "style": "ink"}, {"b4m-make-cup-ink"}),
        ({"content": "hat"}, set()),
        ({"words": "CONTENT cup"}, {"b4m-content-cup"}),
        ({"words": "champion make"}, {"b4m-make-cup-ink"}),  # in no name: on the card
        ({"words": "tiny_sdxl", "kind": "content"}, {"b4m-content-cup"}),
        ({"words": "nothing"}, set()),
        ({"frame": "0"}, set()),
    ],
)
def test_cards_are_found_by_what_stands_on_them(registry, canvas, asked, names) -> None:
    promote("b4m-make-cup-ink")
    assert {card.name for card in found(canvas.base, **asked)} == names


def test_the_library_comes_in_pages_of_this_base_model_or_of_all(registry, canvas) -> None:
    first, after = shelf.cards(canvas.base, CardsRequest(limit=2, ours=True))
    second, end = shelf.cards(canvas.base, CardsRequest(limit=2, ours=True, after=after))
    assert {card.uri for card in [*first, *second]} == {CONTENT, STYLE, MADE} and len(first) == 2 and end is None
    assert found("another@000000000000", ours=True) == []


def test_a_cards_picture_is_the_evaluations_until_another_is_drawn(registry, tmp_path) -> None:
    assert shelf.picture("b4m-style-ink", "1", tmp_path) is None
    made = shelf.picture("b4m-make-cup-ink", "1", tmp_path)
    assert made.size == (SIDE, SIDE) and made.getpixel((0, 0)) == (255, 0, 0)
    shelf.keep_card(Image.new("RGB", (8, 8), "lime"), "b4m-make-cup-ink", "1", tmp_path)
    assert np.asarray(shelf.picture("b4m-make-cup-ink", "1", tmp_path)).max(axis=(0, 1)).tolist() == [0, 255, 0]
    with pytest.raises(shelf.ShelfError, match="no version 7"):
        shelf.picture("b4m-make-cup-ink", "7", tmp_path)


def test_two_versions_are_compared_by_what_differs(registry) -> None:
    rows = {name: (one, other) for name, one, other in shelf.differences(CONTENT, STYLE)}
    assert rows["name"] == ("cup", "ink") and rows["token"] == ("snq", "w@z")
    assert "frame" not in rows and "rank" not in rows  # the same in both
    made = {name: other for name, _, other in shelf.differences(CONTENT, MADE)}
    assert made["parents"] and made["kind"] == "made"
    assert shelf.differences(CONTENT, CONTENT) == []
