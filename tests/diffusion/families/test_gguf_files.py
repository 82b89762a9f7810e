"""A base model whose transformer is a GGUF file: halves on its quantised weights, through all stages and out again."""

from pathlib import Path

import numpy as np
import pytest
import torch

from b4m_pipeline.diffusion.families import BaseModelError, QuantizationError, load_family
from b4m_pipeline.diffusion.footprint import denoiser_bytes
from b4m_pipeline.diffusion.params import BaseModelParams, GenerateParams
from b4m_pipeline.diffusion.sampling import generate
from b4m_pipeline.inputs.encode import encode_training_set
from b4m_pipeline.method.combine import join_halves
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.training.params import BreakParams, MakeParams
from b4m_pipeline.training.setup import check_targets, make_frame
from tests.conftest import train_half, train_make
from tests.diffusion.families.original_flows import ORIGINAL
from tests.tiny_models import SIDE, TARGETS
from tests.training.helpers import BREAK, CONTENT, MAKE, STYLE, frame

gguf = pytest.importorskip("gguf")
PROMPT = "a snq toy in w@z style"
NAMES = pytest.mark.parametrize("name", ["flux2", "z_image"])
Q8 = gguf.GGMLQuantizationType.Q8_0


def write(weights: dict[str, torch.Tensor], file: Path, kind=Q8) -> Path:
    """A GGUF file: matrices of the blocks as `kind`, which wants rows of 32, all else in float32."""
    writer = gguf.GGUFWriter(file, "tiny")
    for name, weight in weights.items():
        value = weight.numpy()
        inside = value.ndim == 2 and value.shape[1] % 32 == 0 and (".0." in name)
        data = gguf.quants.quantize(value, kind) if inside else value
        writer.add_tensor(name, data, raw_dtype=kind if inside else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def bases(tiny_flow, tmp_path_factory):
    """Name of a tiny model -> the same with its transformer in a GGUF file."""
    made: dict[str, BaseModelParams] = {}

    def get(name: str) -> BaseModelParams:
        if name not in made:
            own = tiny_flow(name)
            weights = ORIGINAL[name](load_family(own).load_denoiser().state_dict())
            file = write(weights, tmp_path_factory.mktemp(name) / "own.gguf")
            made[name] = BaseModelParams(path=str(file), config=own.path, resolution=own.resolution)
        return made[name]

    return get


@NAMES
def test_weights_are_held_quantised_and_close_to_the_models_own(name, bases, tiny_flow) -> None:
    family = load_family(bases(name))
    family.check_parts()
    denoiser, plain = family.load_denoiser(), load_family(tiny_flow(name)).load_denoiser()
    linears = {key: layer for key, layer in denoiser.named_modules() if isinstance(layer, torch.nn.Linear)}
    quantised = {key for key, layer in linears.items() if type(layer).__name__ == "GGUFLinear"}
    assert any("to_q" in key for key in quantised) and not any(weight.requires_grad for weight in denoiser.parameters())
    for key, layer in linears.items():
        x = torch.randn(5, layer.in_features)
        expected = plain.get_submodule(key)(x)
        assert (layer(x) - expected).norm() <= (0.02 * expected.norm() if key in quantised else 1e-6), key
    assert (
        make_frame(bases(name), frame(targets=TARGETS[name])).layers.keys()
        == family.find_layers(denoiser, TARGETS[name]).keys()
    )
    held = denoiser_bytes(bases(name), torch.float32)
    assert held < 0.7 * denoiser_bytes(tiny_flow(name), torch.float32)
    assert held == pytest.approx(Path(bases(name).path).stat().st_size, rel=0.2)
    assert (
        family.source.stored("transformer").parameters == load_family(tiny_flow(name)).source.stored("transformer").parameters
    )


@NAMES
def test_all_stages_train_and_draw_in_a_stock_pipeline(name, bases, tiny_manifest, tmp_path) -> None:
    base = bases(name)
    data, own = encode_training_set(*tiny_manifest, base, [PROMPT]), frame(targets=TARGETS[name])
    params = BreakParams(**BREAK | {"learning_rate": 0.1})
    halves = [
        train_half(kind, data, base, own, concept, params, 0)[0] for kind, concept in (("content", CONTENT), ("style", STYLE))
    ]
    joined = join_halves(*halves, own.content_side)
    made, _ = train_make(joined, data, base, own, MakeParams(**MAKE | {"gradient_checkpointing": True}), 0)
    assert any(not torch.equal(made.tensors[key], joined.tensors[key]) for key in made.tensors)
    assert made.metadata["base_config"] == base.config
    asked = GenerateParams(adapter="x", prompts=[PROMPT], images_per_prompt=1, steps=2, guidance_scale=1.0)
    (image,) = generate(made, base, asked, 0).values()
    (plain,) = generate(None, base, asked.model_copy(update={"adapter": None}), 0).values()
    pipeline = load_family(base).load_pipeline()
    pipeline.load_lora_weights(save_adapter(made, tmp_path).parent)
    drawn = {"num_inference_steps": 2, "guidance_scale": 1.0, "height": SIDE, "width": SIDE}
    stock = pipeline(prompt=[PROMPT], **drawn, generator=torch.Generator().manual_seed(0)).images[0]
    assert np.abs(np.asarray(image, int) - np.asarray(stock, int)).max() <= 1
    assert np.abs(np.asarray(image, int) - np.asarray(plain, int)).max() > 1


def test_files_that_cannot_be_used_are_refused_by_name(bases, tiny_flow, tiny_sdxl, tmp_path, monkeypatch) -> None:
    base = bases("flux2")
    for changes, message in (
        ({"quantization": "nf4"}, r"base_model\.quantization: nf4 is not for a GGUF file .* quantised already: use null$"),
        ({"offload": "group"}, r"base_model\.offload: group is not for a GGUF file .* already: use model, or null$"),
    ):
        with pytest.raises(QuantizationError, match=message):
            check_targets(base.model_copy(update=changes), frame())
    whole = Path(base.path).read_bytes()
    for content in (b"GGUX" + whole[4:], whole[:100], whole[:-5000]):
        (tmp_path / "torn.gguf").write_bytes(content)
        with pytest.raises(BaseModelError, match="cannot be read as GGUF"):
            load_family(base.model_copy(update={"path": str(tmp_path / "torn.gguf")}))
    weights = ORIGINAL["flux2"](load_family(tiny_flow("flux2")).load_denoiser().state_dict())
    other = write(weights, tmp_path / "other.gguf", gguf.GGMLQuantizationType.MXFP4)
    with pytest.raises(BaseModelError, match=r"has weights in MXFP4; diffusers reads \[.*'Q8_0'"):
        load_family(base.model_copy(update={"path": str(other)})).check_parts()
    unet = {
        "conditioner.embedders.1.model.positional_embedding": torch.ones(2),
        "model.diffusion_model.out.2.bias": torch.ones(2),
    }
    with pytest.raises(BaseModelError, match="read for transformers alone, and this is a UNet"):
        load_family(BaseModelParams(path=str(write(unet, tmp_path / "unet.gguf")), config=str(tiny_sdxl))).check_parts()
    monkeypatch.setattr("b4m_pipeline.diffusion.families.gguf_files.find_spec", lambda name: None)
    with pytest.raises(QuantizationError, match="which needs the package gguf: pip install gguf"):
        load_family(base)
