"""What an adapter must be to be read. What it must not be is in tests/hostile/test_adapters.py."""

import json
import math

import pytest
import torch

from b4m_pipeline.method.adapter import DIRECTIONS_KEY, AdapterError
from b4m_pipeline.method.directions import Directions, pack_directions
from b4m_pipeline.method.whole import require_whole
from tests.hostile.helpers import KEY, LAYERS, whole


@pytest.mark.parametrize("kind", ["made", "reconstructed", "content", "merged"])
def test_whole_adapters_pass(kind) -> None:
    adapter = whole("content" if kind == "content" else kind)
    require_whole(adapter, "x")
    adapter.metadata |= {"author": "me", "licence": "CC0"}  # others may say more
    require_whole(adapter, "x")


def test_every_fault_names_the_source_and_a_remedy() -> None:
    adapter = whole()
    adapter.tensors[KEY][0, 0] = math.nan
    with pytest.raises(AdapterError, match=r"^models:/x/1 is no whole adapter: .* Train it again or fetch another version$"):
        require_whole(adapter, "models:/x/1")


def test_convolutions_and_ranks_of_a_merge_are_its_own() -> None:
    adapter = whole("merged")
    adapter.tensors |= {"conv.lora_A.weight": torch.ones(4, 3, 3, 3), "conv.lora_B.weight": torch.ones(8, 4, 1, 1)}
    require_whole(adapter, "x")
    adapter.tensors["conv.lora_B.weight"] = torch.ones(8, 3, 1, 1)
    with pytest.raises(AdapterError, match="its rank is 4"):
        require_whole(adapter, "x")


@pytest.mark.parametrize(
    ("inputs", "value", "said"), [(6, 1.0, ""), (5, 1.0, "not of its 6 inputs"), (6, math.nan, "no numbers")]
)
def test_directions_are_of_the_layers_inputs(inputs, value, said) -> None:
    adapter = whole()
    own = Directions(torch.full((inputs, 1), value), torch.ones(inputs, 1))
    adapter.metadata[DIRECTIONS_KEY] = pack_directions(dict.fromkeys(LAYERS, own))
    if not said:
        return require_whole(adapter, "x")
    with pytest.raises(AdapterError, match=said):
        require_whole(adapter, "x")


def test_a_half_says_how_it_was_trained() -> None:
    adapter = whole("content")
    adapter.metadata["params"] = json.dumps({"frame": {}})
    with pytest.raises(AdapterError, match="is a content half, and not which, or not how it was trained"):
        require_whole(adapter, "x")
