"""Merges of two LoRAs: PEFT's own results, and what each method promises."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.merge import delta, from_factors, merge, project_off, stack, weighted
from b4m_pipeline.method.params import MergeParams

LAYERS = {"a": nn.Linear(12, 9, bias=False), "b": nn.Linear(7, 10, bias=False), "c": nn.Conv2d(5, 8, 3, bias=False)}


def lora(seed: int, rank: int = 3, names: str = "abc", alpha: float = 2.0) -> Adapter:
    """Random, of some of LAYERS."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name in names:
        outputs, *inputs = LAYERS[name].weight.shape
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, *inputs, generator=generator)
        tensors[f"{name}.lora_B.weight"] = torch.randn(outputs, rank, *[1] * (len(inputs) - 1), generator=generator)
    return Adapter(tensors, {}, {"r": rank, "lora_alpha": alpha, "target_modules": list(names)})


def by_peft(parts: list[Adapter], weights: list[float], how: str, **options) -> dict[str, torch.Tensor]:
    """The change of each layer by `add_weighted_adapter`, on a model of these layers."""
    model = None
    for index, part in enumerate(parts):
        config = LoraConfig(r=part.rank, lora_alpha=part.lora_config["lora_alpha"], target_modules=part.modules())
        model = get_peft_model(nn.ModuleDict(LAYERS), config, "0") if model is None else model
        if index:
            model.add_adapter(str(index), config)
        for module in part.modules():
            layer = model.base_model.model.get_submodule(module)
            for side in ("lora_A", "lora_B"):
                getattr(layer, side)[str(index)].weight.data.copy_(part.tensors[f"{module}.{side}.weight"])
    names, inject = [str(index) for index in range(len(parts))], model.base_model.inject_adapter

    def seeded(*given, **options) -> None:
        inject(*given, **options)  # draws initial weights, which are then overwritten
        torch.manual_seed(5)

    with torch.random.fork_rng():
        model.base_model.inject_adapter = seeded
        model.base_model.add_weighted_adapter(names, weights, "merged", combination_type=how, **options)
    layers = {module: model.base_model.model.get_submodule(module) for part in parts for module in part.modules()}
    changes = {module: layer.get_delta_weight("merged").flatten(1).detach() for module, layer in layers.items()}
    model.unload()
    return changes


@pytest.mark.parametrize(
    ("how", "theirs"), [("sum", "cat"), ("ties", "ties_svd"), ("dare", "dare_ties_svd"), ("svd", "svd")], ids=str
)
@pytest.mark.parametrize(
    "parts", [(lora(1), lora(2)), (lora(1, 2, "ab"), lora(2, 4, "bc", alpha=4.0))], ids=["alike", "other layers and ranks"]
)
def test_merges_are_those_of_peft(how, theirs, parts) -> None:
    params = MergeParams(density=0.6, content_weight=0.7, style_weight=1.3)
    merged = merge(*parts, how, params, seed=5)
    options = {"density": params.density} if how in ("ties", "dare") else {}
    wanted = by_peft(list(parts), [0.7, 1.3], theirs, **options)
    assert merged.modules() == sorted(wanted) and merged.scaling == 1
    assert merged.rank == (sum(part.rank for part in parts) if how == "sum" else max(part.rank for part in parts))
    for module, change in wanted.items():
        assert torch.allclose(delta(merged, module), change, atol=1e-4), module
        assert change.abs().max() > 0.1


def test_chance_is_its_own_and_the_seed_decides_it() -> None:
    parts, params = (lora(1), lora(2)), MergeParams()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first, again, other = (merge(*parts, "dare", params, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(delta(first, "a"), delta(again, "a")) and not torch.equal(delta(first, "a"), delta(other, "a"))


def test_the_sum_keeps_rows_and_fills_up_what_one_lacks() -> None:
    content, style = lora(1, 2, "ab"), lora(2, 4, "bc")
    merged = stack([content, style])
    assert merged.rank == 6 and all(tensor.is_contiguous() for tensor in merged.tensors.values())
    assert torch.equal(merged.tensors["b.lora_A.weight"][:2], content.tensors["b.lora_A.weight"])
    assert merged.tensors["a.lora_A.weight"].shape == (6, 12) and not merged.tensors["a.lora_A.weight"][2:].any()
    assert merged.tensors["c.lora_B.weight"].shape == (8, 6, 1, 1)
    for module, parts in {"a": [content], "b": [content, style], "c": [style]}.items():
        assert torch.allclose(delta(merged, module), sum(delta(part, module) for part in parts), atol=1e-5)


def test_svd_is_the_nearest_of_its_rank() -> None:
    content, style = lora(1), lora(2)
    whole, low = (merge(content, style, "svd", MergeParams(rank=rank)) for rank in (6, 2))
    assert low.rank == 2
    wanted = delta(content, "a") + delta(style, "a")
    assert torch.allclose(delta(whole, "a"), wanted, atol=1e-4)
    rest = torch.linalg.svdvals(wanted)[2:].square().sum().sqrt()
    assert torch.linalg.norm(delta(low, "a") - wanted).item() == pytest.approx(rest.item(), rel=1e-4)


def test_np_takes_content_off_the_rows_that_style_has() -> None:
    content = lora(1, names="ac")
    style = from_factors({name: tuple(lora(2).tensors[f"{name}.lora_{side}.weight"] for side in "AB") for name in "ab"}, {})
    style.tensors = {key: tensor.clone() for key, tensor in style.tensors.items()}
    style.tensors["a.lora_B.weight"][:, -1] = 0  # a row of lora_A that does nothing
    projected = project_off(content, style, 1.0)
    rows = torch.linalg.qr(style.tensors["a.lora_A.weight"][:-1].T).Q
    change = delta(content, "a")
    assert torch.allclose(delta(projected, "a"), change - 0.5 * change @ rows @ rows.T, atol=1e-5)
    assert torch.equal(delta(projected, "c"), delta(content, "c"))
    merged = merge(content, style, "np", MergeParams(np_strength=1.0, content_weight=0.5))
    assert torch.allclose(delta(merged, "a"), 0.5 * delta(projected, "a") + delta(style, "a"), atol=1e-5)


def test_a_weight_scales_the_whole_change() -> None:
    assert torch.allclose(delta(weighted(lora(1), 0.3), "c"), 0.3 * delta(lora(1), "c"), atol=1e-6)
    only = merge(lora(1), lora(2), "sum", MergeParams(style_weight=0.0))
    assert torch.allclose(delta(only, "a"), delta(lora(1), "a"), atol=1e-6)
