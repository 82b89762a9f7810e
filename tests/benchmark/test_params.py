"""Which pairs a benchmark is about."""

import pytest

from tests.benchmark.helpers import COMPETITORS, params


def test_a_part_is_about_its_share_of_the_pairs(tmp_path):
    pairs = [{"content": f"x/{content}", "style": f"x/{style}"} for content, style in ("ai", "bj", "ck", "di", "ej")]

    def names(**changes) -> list[str]:
        return [pair.name for pair in params(tmp_path, **{"pairs": pairs} | changes).chosen_pairs()]

    assert names() == ["a-i", "b-j", "c-k", "d-i", "e-j"]
    assert names(part="1/2") == ["a-i", "c-k", "d-i"] and names(part="2/2") == ["b-j", "e-j"]  # a style is in one part
    for wrong, reason in (("4/4", "N at most 3"), ("3/2", "K must be at most N"), ("0/2", "pattern"), ("2", "pattern")):
        with pytest.raises(ValueError, match=reason):
            names(part=wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": []}, "pairs"),
        ({"methods": []}, "methods"),
        ({"ours": "theirs"}, "ours is 'theirs', which is not among the methods"),
        ({"competitors": COMPETITORS | {"density": 0}}, "density"),
        ({"competitors": COMPETITORS | {"zip_steps": 0}}, "zip_steps"),
        ({"competitors": {}}, "learning_rate"),
        ({"competitors": COMPETITORS | {"k_lora_beta": -1}}, "k_lora_beta"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [-1]}, "seeds"),
        ({"seeds": [1, 1]}, "seeds must differ"),
        ({"repeated": ["theirs"]}, r"repeated holds \['theirs'\]"),
        ({"pairs": [{"content": "x/a", "style": ""}]}, "style"),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_refused_by_name(tmp_path, changes, message):
    assert params(tmp_path).chosen_pairs()[0].name == "cup-ink"
    with pytest.raises(ValueError, match=message):
        params(tmp_path, **changes)


def test_methods_that_are_not_repeated_have_the_first_seed(tmp_path):
    several = params(tmp_path, seeds=[3, 1], repeated=["ours"])
    assert several.seeds_of("ours") == [3, 1] and several.seeds_of("sum") == [3]
    assert params(tmp_path, seeds=[3, 1]).seeds_of("sum") == [3, 1] and params(tmp_path).seeds_of("sum") == [0]
