"""The proofs that every family of rectified flow must pass, on tiny random models, against diffusers' own pipelines."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from b4m_pipeline.diffusion.families import BaseModelError, Family, TimestepSampling, denoiser_of, load_family
from b4m_pipeline.diffusion.families.flows import pack, places, unpack
from b4m_pipeline.diffusion.lora_files import read_lora
from b4m_pipeline.diffusion.loss import DiffusionLoss
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.diffusion.sampling import ImageRequest, draw
from b4m_pipeline.method.files import load_adapter, save_adapter
from b4m_pipeline.method.frame import Frame
from b4m_pipeline.method.layers import export, inject
from tests.tiny_models import FLOWS, SIDE, TARGETS

PROMPTS = ["a snq toy", "a snq toy in w@z style on a table"]
NO_GUIDANCE = {"z_image": 0.0}  # by the pipeline's own scale; 1 elsewhere
every_flow = pytest.mark.parametrize("name", FLOWS)


@dataclasses.dataclass
class Model:
    """What the proofs share of a model, none of which they change."""

    name: str
    base: BaseModelParams
    family: Family
    denoiser: Any
    pipeline: Any
    prompts: dict[str, torch.Tensor]

    def ask(self, guidance: float | None = None, **further: Any) -> dict[str, Any]:
        """Arguments of the stock pipeline."""
        scale = NO_GUIDANCE.get(self.name, 1.0) if guidance is None else guidance
        generator = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
        own = {"prompt": list(PROMPTS), "height": SIDE, "width": SIDE, "num_inference_steps": 2, "generator": generator}
        return own | self.family.guidance(scale) | further

    def latents(self, given: torch.Tensor) -> torch.Tensor:
        """The stock pipeline's latents, by its own code where it packs them, as (B, C, h, w)."""
        if self.name == "flux2":
            return given.reshape(len(given), SIDE // 8, SIDE // 8, -1).permute(0, 3, 1, 2)
        if given.ndim == 3:
            unpacked = self.pipeline._unpack_latents(given, SIDE, SIDE, self.pipeline.vae_scale_factor)
            return unpacked[:, :, 0] if unpacked.ndim == 5 else unpacked
        return given


@pytest.fixture(scope="session")
def model(tiny_flow) -> Callable[[str], Model]:
    made: dict[str, Model] = {}

    def get(name: str) -> Model:
        if name not in made:
            family = load_family(tiny_flow(name))
            pipeline = family.load_pipeline()
            made[name] = Model(
                name, tiny_flow(name), family, family.load_denoiser(), pipeline, family.encode_prompts(PROMPTS, batch_size=1)
            )
        return made[name]

    return get


def pictures(number: int) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    small = (Image.fromarray(generator.integers(0, 255, (4, 4, 3), np.uint8)) for _ in range(number))
    return [picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for picture in small]


def steps_of(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, ...]]:
    """What the scheduler is given at each step of the next drawing: prediction, timestep, latents."""
    seen, step = [], pipeline.scheduler.step

    def watch(prediction: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor, **further: Any) -> Any:
        seen.append((prediction, timestep, latents))
        return step(prediction, timestep, latents, **further)

    monkeypatch.setattr(pipeline.scheduler, "step", watch)
    return seen


@every_flow
def test_noise_target_and_timesteps_are_those_of_the_formula(name, model) -> None:
    own = model(name)
    encoded = own.family.encode_pictures(pictures(2))
    mean, deviation = (torch.stack(part) for part in zip(*encoded, strict=True))
    tensors = {"latents_mean": mean, "latents_std": deviation, **own.prompts}
    loss = DiffusionLoss(own.family, own.denoiser, tensors, TimestepSampling(1.3, "logit_normal", "auto"))
    rows = torch.tensor([1, 0, 1])
    noisy = loss.add_noise(rows, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    jitter, noise = (torch.randn(3, *mean.shape[1:], generator=generator) for _ in range(2))
    normal = torch.distributions.Normal(0.0, 1.0).icdf(torch.rand(3, generator=generator) ** (1 / 1.3))
    shift = own.family.timestep_shift()
    odds = shift * normal.exp()  # shifting multiplies s / (1 - s)
    share = (odds / (1 + odds)).view(-1, 1, 1, 1)
    clean = mean[rows] + deviation[rows] * jitter
    assert torch.allclose(noisy.timesteps, 1000 * share.flatten(), rtol=1e-4)
    assert torch.allclose(noisy.latents, (1 - share) * clean + share * noise, atol=1e-4)
    assert torch.allclose(noisy.target, noise - clean, atol=1e-6)
    prediction = own.family.predict(own.denoiser, noisy.latents, noisy.timesteps, {k: v[rows] for k, v in own.prompts.items()})
    losses = loss(rows, torch.Generator().manual_seed(3))
    assert torch.allclose(losses, (prediction - noisy.target).square().mean((1, 2, 3)), rtol=1e-4)


@every_flow
def test_a_step_of_the_stock_pipeline_is_what_training_predicts(name, model, monkeypatch) -> None:
    own = model(name)
    seen = steps_of(own.pipeline, monkeypatch)
    own.pipeline(**own.ask())
    assert len(seen) == 2
    for prediction, timestep, latents in seen:
        told = timestep.expand(len(PROMPTS))
        with torch.no_grad():
            said = own.family.predict(own.denoiser, own.latents(latents), told, own.prompts)
        assert torch.allclose(said, own.latents(prediction), atol=1e-5)
    assert not torch.allclose(seen[0][0], seen[1][0], atol=1e-3)


@every_flow
def test_the_shift_is_the_schedulers_own(name, model, monkeypatch) -> None:
    """The first sigmas of the pipeline's schedule are evenly spaced ones, shifted."""
    own = model(name)

    class ScheduledError(Exception):
        """No step need be made."""

    def stop(*_: Any, **__: Any) -> None:
        raise ScheduledError

    monkeypatch.setattr(own.pipeline.scheduler, "step", stop)
    with pytest.raises(ScheduledError):
        own.pipeline(**own.ask(num_inference_steps=50, output_type="latent"))
    shift, even = own.family.timestep_shift(), own.pipeline.scheduler.sigmas[:-1]
    plain = even / (shift - (shift - 1) * even)  # t -> a t / (1 + (a - 1) t), undone
    spacing = plain[:-1] - plain[1:]
    assert torch.allclose(spacing, spacing.mean().expand_as(spacing), atol=1e-3) and plain[0] == pytest.approx(1, abs=1e-4)


@every_flow
def test_encoded_pictures_are_what_the_stock_pipeline_decodes(name, model, monkeypatch) -> None:
    """Our latents in place of the last step's: the pipeline's own way from latents to an image."""
    own, shown = model(name), pictures(2)
    mean = torch.stack([mean for mean, _ in own.family.encode_pictures(shown, batch_size=1)])
    packed = {"flux2": lambda x: x.flatten(2).transpose(1, 2), "sd3": lambda x: x, "z_image": lambda x: x}.get(name, pack)(mean)
    monkeypatch.setattr(own.pipeline.scheduler, "step", lambda *_, **__: (packed,))
    drawn = own.pipeline(**own.ask(output_type="pt")).images
    images = own.pipeline.image_processor.preprocess(shown, SIDE, SIDE)
    vae, frames = own.pipeline.vae, (lambda x: x[:, :, None]) if name == "qwen_image" else (lambda x: x)
    with torch.no_grad():
        decoded = vae.decode(vae.encode(frames(images)).latent_dist.mode()).sample
    decoded = decoded[:, :, 0] if name == "qwen_image" else decoded
    assert torch.allclose(drawn, (decoded / 2 + 0.5).clamp(0, 1), atol=1e-4) and drawn.std() > 0.02
    assert mean.shape[-1] * own.family.vae_factor() == SIDE


@every_flow
def test_prompts_are_encoded_alike_alone_and_together(name, model) -> None:
    own = model(name)
    together = own.family.encode_prompts(PROMPTS)
    assert together.keys() == own.prompts.keys()
    assert all(torch.allclose(together[key], own.prompts[key], atol=1e-5) for key in together)
    assert not torch.allclose(together["prompt_embeds"][0], together["prompt_embeds"][1])


@every_flow
def test_blank_prompts_have_the_shapes_of_encoded_ones(name, model) -> None:
    own = model(name)
    blank = own.family.blank_prompts(2)
    assert blank.keys() == own.prompts.keys()
    for key, value in blank.items():
        assert len(value) == 2 and value.shape[2:] == own.prompts[key].shape[2:]
    assert own.family.latent_channels() == own.family.encode_pictures(pictures(1))[0][0].shape[0]


@every_flow
def test_drawing_from_encoded_prompts_is_drawing_from_prompts(name, model) -> None:
    own, requests = model(name), [ImageRequest(prompt, 7 + index) for index, prompt in enumerate(PROMPTS)]
    settings = {"steps": 2, "guidance_scale": 20.0, "batch_size": 2, "size": (SIDE, SIDE)}
    encoded = own.family.encode_guided(PROMPTS)
    ours = draw(own.family.drawing_pipeline(own.denoiser), requests, encoded=encoded, **settings)
    theirs, plain = (
        [np.asarray(image, int) for _, image in draw(own.pipeline, requests, **settings | changes)]
        for changes in ({}, {"guidance_scale": NO_GUIDANCE.get(name, 1.0)})
    )
    for image, stock, without in zip((image for _, image in ours), theirs, plain, strict=True):
        assert np.abs(np.asarray(image, int) - stock).max() <= 1
        assert name == "schnell" or np.abs(stock - without).max() > 1  # guidance does guide


@every_flow
def test_four_pictures_can_be_learnt(name, model) -> None:
    """All of the denoiser is trained, through the loss, on a few tokens of each prompt."""
    own = model(name)
    denoiser = own.family.load_denoiser().requires_grad_(True)
    mean = torch.stack([mean for mean, _ in own.family.encode_pictures(pictures(4))])
    short = {key: value[:1, :8] if key.startswith("prompt") else value[:1] for key, value in own.prompts.items()}
    tensors = {"latents_mean": mean, "latents_std": torch.zeros_like(mean)} | {
        key: value.repeat_interleave(4, 0) for key, value in short.items()
    }
    loss, rows = DiffusionLoss(own.family, denoiser, tensors), torch.arange(4)
    optimizer = torch.optim.Adam(denoiser.parameters(), 1e-2)

    def measured() -> float:
        return loss.validation(rows, 4, torch.Generator().manual_seed(0))

    before = measured()
    for step in range(1, 101):
        optimizer.zero_grad()
        loss(rows, torch.Generator().manual_seed(step)).mean().backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 0 and measured() < before / 2:
            return
    pytest.fail("not learnt")


def adapted(own: Model) -> tuple[Any, Any]:
    """The model with a PLP adapter in it whose learnable parts are random, and the adapter."""
    denoiser = own.family.load_denoiser()
    layers = own.family.find_layers(denoiser, TARGETS[own.name])
    frame = Frame(0, 4, 4.0, 0.5, "exact", 1.0, "base", layers)
    plp = inject(denoiser, frame, "free")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in plp.values():
            for part in (layer.a, layer.b):
                part.copy_(torch.randn(part.shape, generator=generator) / 4)
    about = dict.fromkeys(("name", "data_digest", "code_version"), "x") | {"kind": "lora", "base_model": "base", "params": "{}"}
    return denoiser.eval(), export(plp, frame, about | own.family.metadata())


@every_flow
def test_an_adapters_file_gives_the_stock_pipeline_our_image(name, model, tmp_path) -> None:
    own = model(name)
    denoiser, adapter = adapted(own)
    file = save_adapter(adapter, tmp_path)
    drawing = own.family.drawing_pipeline(denoiser)
    encoded = own.family.encode_guided(PROMPTS)
    ours = drawing(**own.ask(output_type="np", guidance=2.0) | {"prompt": None} | encoded).images
    negative = {"negative_prompt": [own.family.empty_prompt] * 2} if own.family.empty_prompt else {}
    plain = own.pipeline(**own.ask(output_type="np", guidance=2.0) | negative).images
    own.pipeline.load_lora_weights(tmp_path)
    try:
        assert denoiser_of(own.pipeline).peft_config
        stock = own.pipeline(**own.ask(output_type="np", guidance=2.0) | negative).images
    finally:
        own.pipeline.unload_lora_weights()
    assert np.abs(ours - stock).max() <= 1e-5 and np.abs(plain - stock).max() > 1e-3
    again = load_adapter(tmp_path)
    assert again.modules() == adapter.modules() and again.prefix == "transformer."
    read = read_lora(file, own.base)
    assert all(torch.allclose(read.delta(module), adapter.delta(module), atol=1e-6) for module in adapter.modules())


def watched(own: Model, latents: torch.Tensor, timesteps: torch.Tensor) -> tuple[dict, set[str]]:
    """Inputs of all linear layers at a prediction, and the names of those that have a say in it."""
    denoiser, seen = own.family.load_denoiser(), {}
    linears = {layer: module for layer, module in denoiser.named_modules() if isinstance(module, torch.nn.Linear)}
    for layer, module in linears.items():
        module.weight.requires_grad_(True)
        module.register_forward_pre_hook(lambda _, given, layer=layer: seen.update({layer: given[0].detach()}))
    own.family.predict(denoiser, latents, timesteps, own.prompts).square().sum().backward()
    return seen, {layer for layer, module in linears.items() if module.weight.grad is not None and module.weight.grad.any()}


@every_flow
def test_layers_that_read_the_prompt_read_nothing_else_and_idle_ones_change_nothing(name, model) -> None:
    own = model(name)
    shape = (2, *own.family.encode_pictures(pictures(1))[0][0].shape)
    first, heard = watched(own, torch.randn(shape), torch.tensor([100.0, 200.0]))
    second, _ = watched(own, torch.randn(shape), torch.tensor([800.0, 900.0]))
    same = {layer for layer in first if torch.equal(first[layer], second[layer])}
    constant = {layer for layer in same if "guidance_embedder" in layer}  # the same for all prompts, too
    assert set(own.family.prompt_layers(own.denoiser)) == same - constant
    assert first.keys() - heard == own.family.idle_layers(own.denoiser)
    inputs = own.family.prompt_inputs(own.denoiser, own.prompts)
    assert inputs.keys() == set(own.family.prompt_layers(own.denoiser))
    for layer, rows in inputs.items():
        assert rows.ndim == 3 and len(rows) == 2
        for row in rows.flatten(0, 1)[rows.flatten(0, 1).any(1)]:  # each of them is read
            assert torch.isclose(first[layer].flatten(0, -2), row, atol=1e-5).all(1).any(), layer
    unbatched = {layer for layer, given in first.items() if len(given) not in (1, 2)}
    assert unbatched <= own.family.unbatched_layers(own.denoiser)


@every_flow
def test_sides_that_the_base_model_cannot_have_are_refused_early(name, model) -> None:
    own = model(name)
    multiple = own.family.side_multiple()
    own.family.check_parts()
    with pytest.raises(BaseModelError, match=rf"resolution is {SIDE + 4}, .* multiples of {multiple} pixels: use {SIDE}"):
        type(own.family)(own.base.model_copy(update={"resolution": SIDE + 4})).check_parts()
    with pytest.raises(BaseModelError, match=rf"{SIDE + 4} x {SIDE} pixels: this base model needs multiples of {multiple}"):
        own.family.encode_pictures([Image.new("RGB", (SIDE + 4, SIDE))])


@every_flow
def test_a_text_encoder_that_is_missing_is_named(name, model, tmp_path) -> None:
    own = model(name)
    folder = tmp_path / "model"
    shutil.copytree(own.base.path, folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"] = [None, None]
    (folder / "model_index.json").write_text(json.dumps(index))
    without = load_family(own.base.model_copy(update={"path": str(folder)}))
    for spoil, missing in (
        (lambda: None, "text_encoder"),
        (lambda: shutil.rmtree(folder / "tokenizer"), "text_encoder, tokenizer"),
    ):
        spoil()
        for read in (without.check_parts, lambda: without.encode_prompts(["a cat"])):
            with pytest.raises(BaseModelError, match=f"has no {missing} to read prompts with"):
                read()


def test_patches_are_rows_of_tokens_and_back() -> None:
    latents = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    packed = pack(latents)
    assert packed.shape == (2, 6, 12) and torch.equal(unpack(packed, 4), latents)
    assert packed[0, 1].tolist() == latents[0, :, 0:2, 2:4].flatten().tolist()  # first row, second column
    assert places(2, 3, 4, torch.device("cpu")).tolist()[4] == [0, 1, 1, 0]


@every_flow
def test_a_drawing_begins_with_a_picture_under_noise(name, model, monkeypatch):
    own = model(name)
    starts = [mean for mean, _ in own.family.encode_pictures(pictures(2))]
    requests = [ImageRequest(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    settings = {"steps": 4, "guidance_scale": NO_GUIDANCE.get(name, 1.0), "batch_size": 2, "size": (SIDE, SIDE)}
    seen = steps_of(own.pipeline, monkeypatch)
    list(draw(own.pipeline, requests, **settings, starts=starts, strength=0.5))
    assert len(seen) == 4
    sigma = own.pipeline.scheduler.sigmas[2]
    noise = [torch.randn(starts[0].shape, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    wanted = (1 - sigma) * torch.stack(starts) + sigma * torch.stack(noise)
    assert torch.allclose(own.latents(seen[2][2]).float(), wanted, atol=1e-5)
