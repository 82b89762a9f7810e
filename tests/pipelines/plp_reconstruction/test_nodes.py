"""Two halves become one adapter."""

import pytest
import torch

from b4m_pipeline.method.frame import FrameMismatchError
from b4m_pipeline.pipelines.plp_reconstruction import create_pipeline
from tests.pipelines.helpers import run
from tests.training.helpers import frame


def test_each_half_gives_its_own_side(tiny_halves):
    content, style = tiny_halves
    joined = run(create_pipeline(), content_adapter=content, style_adapter=style, params_frame=frame()).load(
        "reconstructed_adapter"
    )
    assert joined.metadata["kind"] == "reconstructed" and joined.metadata["name"] == "cup-ink"
    for name in joined.modules():
        for side, half in (("lora_A", content), ("lora_B", style)):
            assert torch.equal(joined.tensors[f"{name}.{side}.weight"], half.tensors[f"{name}.{side}.weight"])


def test_the_side_is_the_frames(tiny_halves):
    content, style = tiny_halves
    other = frame(content_side="lora_B")
    with pytest.raises(FrameMismatchError, match="half of lora_B"):
        run(create_pipeline(), content_adapter=content, style_adapter=style, params_frame=other)
