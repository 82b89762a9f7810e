"""The adapter as data."""

import subprocess
import sys

import torch

from b4m_pipeline.common.provenance import ROOT
from b4m_pipeline.method.adapter import Adapter


def adapter(rank=2, alpha=4.0) -> Adapter:
    generator = torch.Generator().manual_seed(0)
    shapes = {"up.to_q": (3, 5), "down.to_out.0": (4, 4)}
    tensors = {}
    for name, (m, n) in shapes.items():
        tensors[f"{name}.lora_B.weight"] = torch.randn(m, rank, generator=generator)
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, n, generator=generator)
    return Adapter(tensors, {}, {"r": rank, "lora_alpha": alpha, "target_modules": list(shapes)})


def test_modules_are_named_once_and_in_order():
    assert adapter().modules() == ["down.to_out.0", "up.to_q"]


def test_a_change_of_weight_is_scaled_by_alpha_over_rank():
    own = adapter(rank=2, alpha=3.0)
    assert own.rank == 2 and own.scaling == 1.5
    expected = 1.5 * own.tensors["up.to_q.lora_B.weight"] @ own.tensors["up.to_q.lora_A.weight"]
    assert own.delta("up.to_q").shape == (3, 5) and torch.allclose(own.delta("up.to_q"), expected)


def test_it_is_known_without_torch():
    code = "import sys, b4m_pipeline.method.adapter; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT.parent)})
