"""Files for other programs, read back by diffusers' own reader of kohya's format and by compose's."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open

from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.lora_files import read_lora
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.registry.exports import ExportError, export_adapter, kohya_name, to_kohya

TARGETS = (".to_q", ".to_k", ".to_v", ".to_out.0", ".net.2", "time_emb_proj", "embedding.linear_1", "embedding.linear_2")


@pytest.fixture(params=["tiny_sdxl", "tiny_sd"])
def base(request) -> BaseModelParams:
    return BaseModelParams(path=str(request.getfixturevalue(request.param)), resolution=32)


@pytest.fixture
def adapter(base, tiny_adapter) -> Adapter:
    """Random weights in the linear layers of a base model, also in those that have another name in the original code; alpha is
    not the rank."""
    generator, rank, tensors = torch.Generator().manual_seed(2), 4, {}
    for name, module in load_family(base).empty_denoiser().named_modules():
        if isinstance(module, torch.nn.Linear) and name.endswith(TARGETS):
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, module.in_features, generator=generator) / 4
            tensors[f"{name}.lora_B.weight"] = torch.randn(module.out_features, rank, generator=generator) / 4
    modules = sorted({key.rsplit(".lora_", 1)[0] for key in tensors})
    assert "time_embedding.linear_1" in modules and ("add_embedding.linear_2" in modules) == ("sdxl" in base.path)
    return Adapter(tensors, tiny_adapter.metadata, {"r": rank, "lora_alpha": 2.0, "target_modules": modules})


def picture(base: BaseModelParams, lora=None) -> torch.Tensor:
    pipe = DiffusionPipeline.from_pretrained(base.path, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    if lora:
        pipe.load_lora_weights(lora)
    generator = torch.Generator().manual_seed(0)
    return pipe("a snq cup", num_inference_steps=2, generator=generator, output_type="pt", height=32, width=32).images


def test_diffusers_reads_it_back_to_the_same_picture(adapter, base, tmp_path) -> None:
    ours = picture(base, save_adapter(adapter, tmp_path / "ours").parent)
    theirs = picture(base, export_adapter(adapter, tmp_path / "x" / "theirs.safetensors", "fp32"))
    assert (ours - theirs).abs().max() <= 1e-5
    assert (ours - picture(base)).abs().max() > 1e-3


def test_compose_reads_it_back_to_the_same_change_with_its_words(adapter, base, tmp_path) -> None:
    read = read_lora(export_adapter(adapter, tmp_path / "cup.safetensors", "fp32"), base)
    assert read.modules() == adapter.modules()
    for module in adapter.modules():
        torch.testing.assert_close(read.delta(module), adapter.delta(module))
    assert read.metadata["example_prompt"] == "a snq cup in w@z style"


def test_header_and_half_precision(tiny_adapter, tmp_path) -> None:
    path = export_adapter(tiny_adapter, tmp_path / "a.safetensors")
    with safe_open(path, framework="pt") as handle:
        about, keys = handle.metadata(), list(handle.keys())
        assert all(handle.get_tensor(key).dtype == torch.float16 for key in keys)
    assert json.loads(about["b4m"])["name"] == about["modelspec.title"] == "cup-ink"
    assert about["modelspec.hash_sha256"].startswith("0x") and len(about["modelspec.hash_sha256"]) == 66
    assert len(keys) == 3 * len(tiny_adapter.modules())
    assert kohya_name("add_embedding.linear_2") == "lora_unet_label_emb_0_2"
    assert kohya_name("mid_block.attentions.0.transformer_blocks.0.attn2.to_k") in {key.split(".")[0] for key in keys}
    assert export_adapter(tiny_adapter, tmp_path / "b.safetensors").read_bytes() == path.read_bytes()


def test_what_cannot_be_written_is_said(tiny_adapter, tmp_path) -> None:
    with pytest.raises(ExportError, match="must end in"):
        export_adapter(tiny_adapter, tmp_path / "a.ckpt")
    module = tiny_adapter.modules()[0]
    tiny_adapter.tensors[f"{module}.lora_B.weight"][0, 0] = 1e6
    with pytest.raises(ExportError, match="use fp32"):
        to_kohya(tiny_adapter)
    assert not list(tmp_path.iterdir())


def test_only_an_earlier_export_of_the_same_adapter_is_written_over(tiny_adapter, tmp_path) -> None:
    file = export_adapter(tiny_adapter, tmp_path / "a.safetensors", "fp32")
    size = file.stat().st_size
    assert export_adapter(tiny_adapter, file, "fp16").stat().st_size < size
    other = Adapter(tiny_adapter.tensors, tiny_adapter.metadata | {"name": "other"}, tiny_adapter.lora_config)
    own = save_adapter(tiny_adapter, tmp_path / "made")  # what the export was made from
    foreign = tmp_path / "foreign.safetensors"
    foreign.write_text("somebody's")
    link = tmp_path / "link.safetensors"
    link.symlink_to("nowhere")
    for adapter, path in ((other, file), (tiny_adapter, own), (tiny_adapter, foreign), (tiny_adapter, link)):
        before = path.read_bytes() if path.exists() else None
        with pytest.raises(ExportError, match=f"{path.name} is there already"):
            export_adapter(adapter, path)
        assert (path.read_bytes() if path.exists() else None) == before


def test_a_transformers_file_has_diffusers_names_and_its_scale(tiny_flow, tmp_path) -> None:
    base = tiny_flow("flux2")
    family, generator, tensors = load_family(base), torch.Generator().manual_seed(3), {}
    for module, (outputs, inputs) in family.find_layers(family.empty_denoiser(), ["attn.to_q", "attn.to_out.0"]).items():
        tensors[f"{module}.lora_A.weight"] = torch.randn(2, inputs, generator=generator)
        tensors[f"{module}.lora_B.weight"] = torch.randn(outputs, 2, generator=generator)
    modules = sorted({key.rsplit(".lora_", 1)[0] for key in tensors})
    metadata = {"kind": "made", "name": "cup-ink", "base_model": base.path, "frame": "f", "frame_config": "{}", "params": "{}"}
    metadata |= {"data_digest": "d", "code_version": "1", "architecture": "other"} | family.metadata()
    adapter = Adapter(tensors, metadata, {"r": 2, "lora_alpha": 6.0, "target_modules": modules})
    file = export_adapter(adapter, tmp_path / "cup.safetensors", "fp32")
    with safe_open(file, framework="pt") as handle:
        assert {key.split(".")[0] for key in handle.keys()} == {"transformer"} and "b4m" in handle.metadata()
    pipeline = family.load_pipeline()
    pipeline.load_lora_weights(file)
    layer = pipeline.transformer.get_submodule(modules[0])
    change = layer.lora_B["default_0"].weight @ layer.lora_A["default_0"].weight * layer.scaling["default_0"]
    torch.testing.assert_close(change, adapter.delta(modules[0]))
