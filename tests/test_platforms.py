"""Machines that these tests do not run on: Windows, and Macs with Apple's GPUs.

What is banned by name, for Windows, stands in pyproject.toml (ruff's banned-api).
"""

import ast
import re
from pathlib import Path

import pytest
import torch
import torchgen
import yaml
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from b4m_pipeline.datasets.training_set import TrainingSetDataset
from b4m_pipeline.method.files import load_adapter, save_adapter
from b4m_pipeline.training.checkpoints import load_checkpoint, save_checkpoint
from b4m_pipeline.training.params import MakeParams
from b4m_pipeline.training.setup import make_frame
from b4m_pipeline.training.trainer import Trainer
from tests.conftest import train_make
from tests.test_startup import ROOT
from tests.training.helpers import MAKE, frame, train_half

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT = {"open", "read_text", "write_text"}


def without_encoding(source: str) -> list[int]:
    """Lines on which a text file is opened in the platform's encoding, which on Windows is not UTF-8."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(keyword.arg == "encoding" for keyword in node.keywords):
            continue
        function, owner = node.func, None
        if isinstance(function, ast.Attribute):
            owner = function.value.id if isinstance(function.value, ast.Name) else ""
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name not in TEXT or owner in ("Image", "webbrowser"):
            continue
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        binary = name == "open" and any(re.fullmatch("[rwxa]b?[+]?b?", mode) and "b" in mode for mode in modes)
        if not binary:
            found.append(node.lineno)
    return found


def test_no_file_is_read_or_written_in_the_platforms_encoding():
    assert without_encoding("p.read_text()\nopen(p, 'rb')\np.open('w', encoding='utf-8')\nopen(p)\nImage.open(p)") == [1, 4]
    sources = [*ROOT.glob("src/**/*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("benchmarks/*.py")]
    found = {file.relative_to(ROOT).as_posix(): without_encoding(file.read_text(encoding="utf-8")) for file in sources}
    found = {name: lines for name, lines in found.items() if lines}
    assert len(sources) > 100 and not found, f"without encoding: {found}"


def test_what_was_read_does_not_hang_on_its_file(tiny_adapter, tiny_training_set, tmp_path):
    """Windows replaces and removes no file of which a part is mapped into memory."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux shows what is mapped")
    save_adapter(tiny_adapter, tmp_path)
    save_checkpoint(tmp_path / "kept.safetensors", {"weights": [torch.ones(5000)]})
    dataset = TrainingSetDataset(filepath=str(tmp_path / "set.safetensors"))
    dataset.save(tiny_training_set)
    held = [load_adapter(tmp_path), load_checkpoint(tmp_path / "kept.safetensors"), dataset.load()]
    assert str(tmp_path) not in maps.read_text(encoding="utf-8"), held


class Operations(TorchDispatchMode):
    """Notes what torch is asked for, and what gives numbers of a double's length."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.double: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.namespace == "aten":
            self.names.add(func.name().removeprefix("aten::"))
        if any(isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64 for leaf in tree_leaves(result)):
            self.double.add(func.name())
        return result


@pytest.fixture
def steps(monkeypatch):
    """The operations of all training steps of a test."""
    noted, step = Operations(), Trainer.train_step

    def watched(self, precondition):
        with noted:
            return step(self, precondition)

    monkeypatch.setattr(Trainer, "train_step", watched)
    return noted


def on_apples_gpus() -> set[str]:
    """Names of the operations that torch has for MPS, by its own table: kernels of that device, or made of others'."""
    table = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    entries = {entry["func"].split("(")[0]: entry for entry in yaml.load(table.read_text(encoding="utf-8"), yaml.CSafeLoader)}

    def has(entry: dict) -> bool:
        if "structured_delegate" in entry:
            return has(entries[entry["structured_delegate"]])
        kernels = {key.strip() for keys in entry.get("dispatch", {}) for key in keys.split(",")}
        return not kernels or any(key == "MPS" or key.startswith("Composite") for key in kernels)

    return {name for name, entry in entries.items() if has(entry)}


def test_a_training_step_asks_for_nothing_that_apples_gpus_lack(steps, tiny_training_set, tiny_base, joined_adapter):
    changes = {"steps": 1, "ema_decay": 0.9, "min_snr_gamma": 5.0, "noise_offset": 0.1}
    train_half("content", tiny_training_set, tiny_base, **changes)
    attention = frame(targets=TARGETS)
    joined_adapter.metadata["frame"] = make_frame(tiny_base, attention).fingerprint
    train_make(joined_adapter, tiny_training_set, tiny_base, attention, MakeParams(**MAKE | {"steps": 1}), 0)
    assert {"convolution", "linalg_cholesky_ex", "_foreach_lerp_.Scalar"} <= steps.names  # of UNet, make and average
    assert not steps.double, "MPS has no float64"
    known = on_apples_gpus()
    assert "_linalg_eigh" not in known and "addmm" in known
    assert steps.names <= known, f"not on MPS: {sorted(steps.names - known)}"
