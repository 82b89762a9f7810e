"""K-LoRA: in each layer one of two LoRAs acts, style's in more of them from step to step."""

import numpy as np
import pandas as pd
import pytest
import torch

from b4m_pipeline.benchmark import run as benchmark
from b4m_pipeline.benchmark.all_methods import METHODS
from b4m_pipeline.benchmark.k_lora import KLora
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.sampling import draw, put_on
from b4m_pipeline.evaluation.samples import ImageRequest, draw_samples
from b4m_pipeline.method.adapter import Adapter
from tests.benchmark.helpers import EVALUATION


def drawn(way, base) -> list[np.ndarray]:
    pipeline = load_family(base).load_pipeline("cpu")
    put_on(pipeline, way)
    requests = [ImageRequest("a snq toy in w@z style", seed) for seed in range(2)]
    settings = {"steps": 4, "guidance_scale": 3.0, "batch_size": 2, "size": (32, 32)}
    return [np.asarray(image, int) for _, image in draw(pipeline, requests, **settings)]


def test_a_schedule_that_prefers_one_side_draws_as_that_lora(shared) -> None:
    content, style = shared.lora("content"), shared.lora("style")
    alone = [drawn(part, shared.base_model) for part in (content, style)]
    always = [drawn(KLora(content, style, 0.0, beta), shared.base_model) for beta in (0.0, 1e9)]
    assert np.array_equal(alone, always) and not np.array_equal(*alone)


def test_the_choice_is_by_layer_and_goes_over_to_style(shared) -> None:
    content, style = shared.lora("content"), shared.lora("style")
    way, modules = KLora(content, style, 1.5, 0.5), content.modules()
    most = content.rank * style.rank
    deltas = [[part.delta(module).abs().flatten() for module in modules] for part in (content, style)]
    gamma = np.mean([float(own.sum() / other.sum()) for own, other in zip(*deltas, strict=True)])
    for module, own, other in zip(modules, *deltas, strict=True):
        tops = [float(part.sort(descending=True).values[:most].sum()) for part in (own, other)]
        assert way.limits[module] == pytest.approx(tops[0] / (gamma * tops[1]), rel=1e-4)
        for done in (0.0, 0.5, 0.9):
            wanted = "content" if tops[0] / gamma > tops[1] * (1.5 * done + 0.5) else "style"
            assert way.choice(module, done) == wanted
    shares = [np.mean([way.choice(module, done) == "style" for module in modules]) for done in np.linspace(0, 1, 9)]
    assert shares == sorted(shares) and shares[0] < shares[-1]


def test_each_layers_lora_is_set_before_every_step(shared) -> None:
    content, style = shared.lora("content"), shared.lora("style")
    way, seen = KLora(content, style, 1.5, 0.5), []
    first, second = content.modules()[:2]
    way.limits |= {first: 0.8, second: 9.0}  # style's from the second of four steps on; never
    pipeline = load_family(shared.base_model).load_pipeline("cpu")
    put_on(pipeline, way)
    layers = [pipeline.unet.get_submodule(module) for module in (first, second)]
    layers[0].register_forward_hook(lambda *_: seen.append([layer.active_adapters[0] for layer in layers]))
    list(draw(pipeline, [ImageRequest("a", 0)], steps=4, guidance_scale=3.0, batch_size=1, size=(32, 32)))
    assert seen == [["content", "content"], *[["style", "content"]] * 3]


def test_it_is_drawn_with_like_any_other_method(shared) -> None:
    way = METHODS["K-LoRA"](shared)
    requests = benchmark.requests_of(shared, "K-LoRA", EVALUATION)
    others = benchmark.requests_of(shared, "sum", EVALUATION)
    adapters = {"K-LoRA": way, "sum": METHODS["sum"](shared)}
    pictures = draw_samples([*requests, *others], adapters, shared.base_model, EVALUATION)
    alone = draw_samples(others, {"sum": adapters["sum"]}, shared.base_model, EVALUATION)
    assert [pictures[key].tobytes() for key in alone] == [image.tobytes() for image in alone.values()]  # nothing of it stays


def test_a_style_that_changes_nothing_never_acts(shared) -> None:
    style = shared.lora("style")
    nothing = Adapter({key: torch.zeros_like(value) for key, value in style.tensors.items()}, style.metadata, style.lora_config)
    way = KLora(shared.lora("content"), nothing, 1.5, 0.5)
    assert pd.notna(list(way.limits.values())).all()
