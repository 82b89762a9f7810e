"""Optimizers by name, those of optional packages included."""

import sys
import types

import pytest
import torch

from b4m_pipeline.training.optimizers import OptimizerError, check_optimizer, make_optimizer


def group() -> dict:
    return {"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 0.5}


def test_prodigy_finds_its_own_rate():
    target = torch.tensor([3.0, -2.0])
    own = group() | {"lr": 1.0}
    optimizer, (x,) = make_optimizer("prodigy", [own], 0.0), own["params"]
    for _ in range(300):
        optimizer.zero_grad()
        (x - target).square().sum().backward()
        optimizer.step()
    assert type(optimizer).__name__ == "Prodigy"
    assert torch.allclose(x, target, atol=0.2)


def test_adamw8bit_is_bitsandbytes_own(monkeypatch):
    """The package is large and needs a GPU to be of use: here it is a stand-in that says what it was given."""

    class AdamW8bit(torch.optim.AdamW):
        pass

    package = types.ModuleType("bitsandbytes")
    package.optim = types.SimpleNamespace(AdamW8bit=AdamW8bit)
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    optimizer = make_optimizer("adamw8bit", [group(), group() | {"lr": 0.1}], 0.03)
    assert isinstance(optimizer, AdamW8bit)
    assert [(own["lr"], own["weight_decay"]) for own in optimizer.param_groups] == [(0.5, 0.03), (0.1, 0.03)]


@pytest.mark.parametrize(("name", "package"), [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt")])
def test_an_absent_package_is_named(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(OptimizerError, match=f"pip install {package}"):
        check_optimizer(name)
