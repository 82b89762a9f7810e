"""Settings by memory: over the environment's, under what is set for the run."""

import pytest

from b4m_pipeline.common.presets import PresetError, with_preset

PARAMETERS = {
    "memory": None,
    "base": {"path": "x", "offload": None},
    "steps": 3,
    "presets": {8: {"base": {"offload": "model"}, "steps": 1}, 24: {}},
}


def test_the_chosen_settings_lie_over_the_environments() -> None:
    plain = {name: value for name, value in PARAMETERS.items() if name != "presets"}
    assert with_preset(PARAMETERS, {}) == plain == with_preset(PARAMETERS, {}, 24)
    assert with_preset(PARAMETERS | {"memory": 8}, {}) == {"memory": 8, "base": {"path": "x", "offload": "model"}, "steps": 1}
    given = {"memory": 8, "steps": 3, "base": {"path": "y"}}
    merged = PARAMETERS | {"memory": 8, "base": {"path": "y", "offload": None}}
    assert with_preset(merged, given) == {"memory": 8, "base": {"path": "y", "offload": "model"}, "steps": 3}
    assert PARAMETERS["base"] == {"path": "x", "offload": None}


def test_other_sizes_are_refused() -> None:
    with pytest.raises(PresetError, match=r"memory is 10, and this environment has settings for 8, 24 \(GB\)"):
        with_preset(PARAMETERS | {"memory": 10}, {})
    with pytest.raises(PresetError, match="memory is '8', and"):
        with_preset(PARAMETERS | {"memory": "8"}, {})
    with pytest.raises(PresetError, match="this environment has no settings by memory"):
        with_preset({"memory": 8}, {})
