"""Base models without a UNet through all that is made for those with one: stages, registry, serving, compose, generate."""

import io
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

from b4m_pipeline.benchmark.k_lora import KLora
from b4m_pipeline.diffusion.families import ObjectiveError, load_family
from b4m_pipeline.diffusion.lora_files import read_lora
from b4m_pipeline.diffusion.params import BaseModelParams, GenerateParams
from b4m_pipeline.diffusion.sampling import generate, put_on
from b4m_pipeline.inputs.encode import encode_training_set
from b4m_pipeline.inputs.training_set import TrainingSet
from b4m_pipeline.library.compose import compose
from b4m_pipeline.library.params import ComposeParams
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.combine import join_halves
from b4m_pipeline.method.files import load_adapter, save_adapter
from b4m_pipeline.registry.adapters import register_adapter
from b4m_pipeline.registry.exports import export_adapter
from b4m_pipeline.training.params import BreakParams, MakeParams
from b4m_pipeline.training.setup import check_objective
from tests.conftest import train_half, train_make
from tests.tiny_models import SIDE, TARGETS
from tests.training.helpers import BREAK, CONTENT, MAKE, STYLE, frame

PROMPT = "a snq toy in w@z style"
OTHERS = [f"a {content} toy in {style} style" for content in ("dog", "big red car") for style in ("oil", "ink")]
WORDS = {"template": "a {content} in {style} style", "contents": ["dog", "car", "cup"], "styles": ["oil", "pixel art"]}
flows = pytest.mark.parametrize("name", ["flux2", "z_image"])
FLOW = {"timestep_sampling": "logit_normal", "timestep_shift": "auto"}


class Trained:
    """One base model, its training set, and what the stages make of it."""

    def __init__(self, name: str, base: BaseModelParams, manifest, folder: Path):
        self.base, self.folder = base, folder
        self.data: TrainingSet = encode_training_set(*manifest, base, OTHERS, cache=str(folder / "cache"))
        self.frame = frame(targets=TARGETS[name], basis="words", words=WORDS)
        self.break_params = BreakParams(**BREAK | FLOW | {"preservation_weight": 0.1, "learning_rate": 0.1})
        self.content, self.history = self.half("content")
        self.style, _ = self.half("style")
        self.joined = join_halves(self.content, self.style, self.frame.content_side)
        make = MakeParams(**MAKE | FLOW | {"gradient_checkpointing": True})
        self.made, _ = train_make(self.joined, self.data, base, self.frame, make, 0)
        for kind in ("content", "style", "made"):
            save_adapter(getattr(self, kind), folder / kind)

    def half(self, kind: str, **io) -> tuple[Adapter, list]:
        concept = CONTENT if kind == "content" else STYLE
        return train_half(kind, self.data, self.base, self.frame, concept, self.break_params, 0, **io)


@pytest.fixture(scope="module")
def trained(tiny_flow, tiny_manifest, tmp_path_factory):
    made: dict[str, Trained] = {}

    def get(name: str) -> Trained:
        if name not in made:
            made[name] = Trained(name, tiny_flow(name), tiny_manifest, tmp_path_factory.mktemp(name))
        return made[name]

    return get


def drawn(adapter: Adapter | None, base: BaseModelParams, seed: int = 0, **changes) -> np.ndarray:
    own = {"adapter": "x" if adapter else None, "prompts": [PROMPT], "images_per_prompt": 1, "steps": 2, "guidance_scale": 2.0}
    (image,) = generate(adapter, base, GenerateParams(**own | changes), seed).values()
    return np.asarray(image, int)


@flows
def test_all_stages_train_and_say_for_what(name, trained) -> None:
    own = trained(name)
    for adapter in (own.content, own.style, own.joined, own.made):
        assert adapter.metadata["base_pipeline"] == load_family(own.base).pipeline_class.__name__
        assert load_adapter(save_adapter(adapter, own.folder / "again")).modules() == adapter.modules()
    for half, learnt in ((own.content, "lora_A"), (own.style, "lora_B")):
        assert any(half.tensors[key].any() for key in half.tensors if learnt in key)
        assert max(float(half.delta(module).abs().max()) for module in half.modules()) > 1e-3
    content, style = (own.joined.tensors, own.made.tensors)
    assert any(not torch.equal(content[key], style[key]) for key in content)
    assert np.abs(drawn(own.made, own.base) - drawn(None, own.base)).max() > 1


@flows
def test_a_break_that_was_stopped_goes_on_to_the_same_weights(name, trained, tmp_path) -> None:
    own = trained(name)

    def stop(entry, step):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        own.half("content", checkpoint=tmp_path / "break.safetensors", log=stop)
    again, history = own.half("content", checkpoint=tmp_path / "break.safetensors")
    assert all(torch.equal(again.tensors[key], tensor) for key, tensor in own.content.tensors.items())
    assert history == own.history


@flows
def test_what_was_encoded_before_is_taken_from_the_cache(name, trained, tiny_manifest, monkeypatch) -> None:
    own = trained(name)
    family = type(load_family(own.base))
    for method in ("encode_prompts", "encode_pictures"):
        monkeypatch.setattr(family, method, None)  # nothing is encoded
    again = encode_training_set(*tiny_manifest, own.base, OTHERS, cache=str(own.folder / "cache"))
    assert again.tensors.keys() == own.data.tensors.keys()
    assert all(torch.equal(again.tensors[key], tensor) for key, tensor in own.data.tensors.items())


@flows
def test_it_is_registered_and_served_with_its_scales(name, trained, tracking) -> None:
    own = trained(name)
    inference = {"num_inference_steps": 2, "guidance_scale": 2.0}
    uri = register_adapter(own.folder / "made", inference=inference)["uri"]
    served = mlflow.pyfunc.load_model(uri)
    for scales in ({}, {"content_scale": 0.5, "style_scale": 0.0}):
        (png,) = served.predict({"prompt": [PROMPT]}, params={"seed": 3} | scales)
        image = np.asarray(Image.open(io.BytesIO(png)), int)
        assert np.abs(image - drawn(own.made, own.base, 3, **scales)).max() <= 1
    if name == "flux2":
        with pytest.raises(MlflowException, match="negative_prompt: this base model takes none"):
            served.predict({"prompt": [PROMPT]}, params={"negative_prompt": "blur"})
    multiple = load_family(own.base).side_multiple()
    assert multiple == 8  # of 8 is what the schema asks for already
    version = tracking.get_model_version_by_alias("b4m-make-cup-ink", "candidate")
    assert version.tags["base_pipeline"] == own.made.metadata["base_pipeline"]
    assert mlflow.diffusers.load_model(uri).load_pipeline(device="cpu").transformer.peft_config


@flows
def test_halves_are_composed_and_merged(name, trained) -> None:
    own = trained(name)
    named = {"content": str(own.folder / "content"), "style": str(own.folder / "style")}
    params = ComposeParams(**named | {"methods": ["halves", "sum", "svd"]})
    made = compose(params, own.base, "lora_A", MakeParams(**MAKE), 0)[2]
    assert all(torch.equal(made["halves"].tensors[key], tensor) for key, tensor in own.joined.tensors.items())
    base, joined, *merged = (drawn(adapter, own.base) for adapter in (None, *made.values()))
    assert np.abs(joined - base).max() > 1
    assert all(np.abs(image - joined).max() <= 1 for image in merged)  # orthogonal halves add up
    file = export_adapter(own.made, own.folder / "x.safetensors", "fp32")
    read = read_lora(file, own.base)
    assert all(torch.allclose(read.delta(module), own.made.delta(module), atol=1e-6) for module in own.made.modules())


@flows
def test_k_lora_knows_which_step_it_is_at(name, trained, monkeypatch) -> None:
    own = trained(name)
    pipeline, asked = load_family(own.base).load_pipeline(), []
    way = KLora(own.content, own.style, alpha=1.0, beta=0.0)
    monkeypatch.setattr(KLora, "choice", lambda self, module, done: asked.append(done) or "content")
    put_on(pipeline, way)
    pipeline(prompt=[PROMPT], height=SIDE, width=SIDE, num_inference_steps=4, guidance_scale=1.0)
    assert sorted(set(asked)) == [0.0, 0.25, 0.5, 0.75]


@flows
def test_images_are_shown_while_training(name, trained) -> None:
    own, shown = trained(name), []
    params = BreakParams(**BREAK | {"steps": 1, "samples": {"every": 1, "steps": 2}})
    arguments = (own.data, own.base, own.frame, CONTENT, params, 0)
    train_half("content", *arguments, show=lambda image, title: shown.append((title, image)))
    ((title, image),) = shown
    assert title == "content_break/0-step-000001" and image.size == (SIDE, SIDE)


def test_a_layer_that_reads_all_tokens_as_one_row_is_trained_in_two_passes(trained) -> None:
    """The context's embedder of Z-Image has no batch, so gradients could not be routed within one pass."""
    own = trained("z_image")
    targets = frame(targets=["to_q", "cap_embedder.1"])
    halves = [
        train_half("content", own.data, own.base, targets, CONTENT, BreakParams(**BREAK | {"one_pass": one_pass}), 0)[0]
        for one_pass in (True, False)
    ]
    assert all(torch.equal(halves[0].tensors[key], tensor) for key, tensor in halves[1].tensors.items())


@flows
def test_parameters_of_another_objective_are_refused_by_name(name, tiny_flow) -> None:
    base = tiny_flow(name)
    check_objective(base, "make", MakeParams(**MAKE | FLOW))
    with pytest.raises(ObjectiveError, match=r"^make\.min_snr_gamma is 5\.0"):
        check_objective(base, "make", MakeParams(**MAKE | {"min_snr_gamma": 5.0}))
    with pytest.raises(ObjectiveError, match=r"^content_break\.noise_offset is 0\.1"):
        check_objective(base, "content_break", BreakParams(**BREAK | {"noise_offset": 0.1}))
