"""Parts of a pipeline that wait elsewhere, as far as a machine without a GPU can tell."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.families.offload import offload_groups, place, spare_vae
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.diffusion.sampling import put_on


class Recorded:
    """A pipeline that says what is asked of it."""

    def __init__(self):
        self.calls, self.vae = [], self

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, *args, kwargs)) or self


@pytest.mark.parametrize(
    ("device", "offload", "expected"),
    [
        ("cpu", None, [("to", "cpu", {})]),
        ("cuda", None, [("to", "cuda", {})]),
        ("cpu", "model", [("to", "cpu", {})]),
        ("mps", "group", [("to", "mps", {})]),
        ("cuda", "model", [("enable_slicing", {}), ("enable_tiling", {}), ("enable_model_cpu_offload", {"device": "cuda"})]),
        (
            "cuda",
            "group",
            [
                ("enable_slicing", {}),
                ("enable_tiling", {}),
                (
                    "enable_group_offload",
                    {"onload_device": torch.device("cuda"), "offload_type": "leaf_level", "use_stream": True},
                ),
            ],
        ),
    ],
)
def test_diffusers_is_asked_for_what_is_wanted(device, offload, expected) -> None:
    pipeline = Recorded()
    assert place(pipeline, device, offload) is pipeline and pipeline.calls == expected


def test_encoders_and_pipelines_are_placed_by_the_parameter(tiny_base, monkeypatch) -> None:
    placed = []
    monkeypatch.setattr(
        "b4m_pipeline.diffusion.families.base.place", lambda pipeline, *how: placed.append(how) or pipeline.to("cpu")
    )
    family = load_family(tiny_base.model_copy(update={"offload": "model"}))
    family.encode_prompts(["a cat"])
    family.load_pipeline()
    assert placed == [("cpu", "model")] * 2


def test_groups_that_come_and_go_draw_the_same_image_with_an_adapter(tiny_base, tiny_adapter) -> None:
    images = []
    for grouped in (False, True):
        pipeline = load_family(tiny_base).load_pipeline()
        if grouped:
            spare_vae(pipeline)
            offload_groups(pipeline, "cpu")
        put_on(pipeline, tiny_adapter)
        asked = {"num_inference_steps": 2, "height": 32, "width": 32, "output_type": "np"}
        images.append(
            pipeline(["a cat"] * 2, generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)], **asked).images
        )
    assert np.abs(images[0] - images[1]).max() < 1e-5


def test_quantised_weights_are_not_moved_by_groups(tiny_base) -> None:
    with pytest.raises(ValidationError, match="offload: group is not for quantised weights"):
        BaseModelParams(path=tiny_base.path, quantization="nf4", offload="group")
