"""Files for other programs, read back by diffusers' own reader of kohya's format."""

import json

import pytest
import torch
from safetensors import safe_open

from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.registry.exports import ExportError, export_adapter, kohya_name, to_kohya


def pipeline(folder):
    from diffusers import StableDiffusionXLPipeline

    loaded = StableDiffusionXLPipeline.from_pretrained(folder, use_safetensors=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def picture(pipe) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = pipe("a snq cup", num_inference_steps=2, generator=generator, output_type="pt", height=32, width=32).images
    return drawn


@pytest.fixture
def adapter(tiny_adapter):
    """Random weights in attention and in add_embedding, whose name is another one there; alpha is not the rank."""
    generator = torch.Generator().manual_seed(2)
    rank, shapes = tiny_adapter.rank, {"add_embedding.linear_2": (32, 32)}
    for module, (m, n) in shapes.items():
        tiny_adapter.tensors[f"{module}.lora_A.weight"] = torch.randn(rank, n, generator=generator)
        tiny_adapter.tensors[f"{module}.lora_B.weight"] = torch.randn(m, rank, generator=generator)
    tiny_adapter.lora_config |= {"lora_alpha": 2.0, "target_modules": tiny_adapter.modules()}
    return tiny_adapter


def test_diffusers_reads_it_back_to_the_same_picture(adapter, tiny_sdxl, tmp_path) -> None:
    ours, theirs, base = pipeline(tiny_sdxl), pipeline(tiny_sdxl), pipeline(tiny_sdxl)
    ours.load_lora_weights(save_adapter(adapter, tmp_path / "ours").parent)
    theirs.load_lora_weights(export_adapter(adapter, tmp_path / "x" / "theirs.safetensors", "fp32"))
    (own,), (other,) = ours.get_active_adapters(), theirs.get_active_adapters()
    for module in adapter.modules():
        mine, read = ours.unet.get_submodule(module), theirs.unet.get_submodule(module)
        for name in ("lora_A", "lora_B"):
            assert torch.equal(getattr(mine, name)[own].weight, getattr(read, name)[other].weight), module
        assert mine.scaling[own] == read.scaling[other] == 0.5
    assert (picture(ours) - picture(theirs)).abs().max() <= 1e-6
    assert (picture(ours) - picture(base)).abs().max() > 1e-3


def test_header_and_half_precision(adapter, tmp_path) -> None:
    path = export_adapter(adapter, tmp_path / "a.safetensors")
    with safe_open(path, framework="pt") as handle:
        about, keys = handle.metadata(), list(handle.keys())
        assert all(handle.get_tensor(key).dtype == torch.float16 for key in keys)
    assert about["ss_network_dim"] == "4" and about["ss_network_alpha"] == "2.0"
    assert json.loads(about["b4m"])["name"] == "cup-ink"
    assert len(keys) == 3 * len(adapter.modules())
    assert kohya_name("add_embedding.linear_2") == "lora_unet_label_emb_0_2"
    assert kohya_name("mid_block.attentions.0.transformer_blocks.0.attn2.to_k") in {key.split(".")[0] for key in keys}


def test_what_cannot_be_written_is_said(adapter, tmp_path) -> None:
    with pytest.raises(ExportError, match="must end in"):
        export_adapter(adapter, tmp_path / "a.ckpt")
    module = adapter.modules()[0]
    adapter.tensors[f"{module}.lora_B.weight"][0, 0] = 1e6
    with pytest.raises(ExportError, match="use fp32"):
        to_kohya(adapter)
    assert not list(tmp_path.iterdir())
