"""LoRAs of other programs: read to the change that diffusers makes of them; what is no LoRA of the base is refused."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.lora_files import find_lora, is_ours, read_lora, require_layers
from b4m_pipeline.method.adapter import WEIGHTS_NAME, AdapterError
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.method.merge import delta
from b4m_pipeline.registry.exports import export_adapter, kohya_name

OLD = {"to_out.0": "to_out_lora", "to_q": "to_q_lora", "to_k": "to_k_lora", "to_v": "to_v_lora"}


def old_name(module: str) -> str:
    """As diffusers called layers of attention before PEFT."""
    block, _, layer = module.partition(".transformer_blocks.0.")
    attention, _, projection = layer.partition(".")
    return f"unet.{block}.transformer_blocks.0.{attention}.processor.{OLD[projection]}"


def write(path, tensors, **header):
    save_file(
        {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in tensors.items()},
        path,
        metadata={"format": "pt", **header},
    )
    return path


def of_diffusers(adapter) -> dict[str, torch.Tensor]:
    return {f"unet.{key}": tensor for key, tensor in adapter.tensors.items()}


@pytest.mark.parametrize("written", ["peft", "peft, alpha", "old", "kohya", "kohya, its own alphas", "ours, exported"])
def test_every_format_is_read_to_the_same_change(tiny_adapter, tiny_base, tmp_path, written) -> None:
    scaling, path, modules = (
        dict.fromkeys(tiny_adapter.modules(), 1.0),
        tmp_path / "My cup v1.5.safetensors",
        tiny_adapter.modules(),
    )
    if written == "peft":
        write(path, of_diffusers(tiny_adapter))
    elif written == "peft, alpha":
        config = {"unet.r": 4, "unet.lora_alpha": 2, "unet.target_modules": modules, "unet.alpha_pattern": {modules[0]: 12}}
        write(path, of_diffusers(tiny_adapter), lora_adapter_metadata=json.dumps(config))
        scaling = dict.fromkeys(modules, 0.5) | {modules[0]: 3.0}
    elif written == "old":
        sides = {"down": "lora_A", "up": "lora_B"}
        write(
            path,
            {f"{old_name(m)}.{s}.weight": tiny_adapter.tensors[f"{m}.{t}.weight"] for m in modules for s, t in sides.items()},
        )
    elif written == "ours, exported":
        tiny_adapter.metadata |= {"token": "snq", "noun": "cup"}
        export_adapter(tiny_adapter, path, "fp32")
    else:
        export_adapter(tiny_adapter, path, "fp32")
        tensors = load_file(path)
        if written != "kohya":
            scaling = {module: 1 + place / 4 for place, module in enumerate(modules)}
            tensors |= {f"{kohya_name(module)}.alpha": torch.tensor(4 * factor) for module, factor in scaling.items()}
        write(path, tensors)
    assert not is_ours(path)
    read = read_lora(path, tiny_base)
    assert read.modules() == modules and read.scaling == 1
    for module in modules:
        assert torch.allclose(delta(read, module), scaling[module] * delta(tiny_adapter, module), atol=1e-5), module
    assert read.metadata["name"] == "My-cup-v1-5" and read.metadata["kind"] == "lora"
    assert read.metadata.get("token") == ("snq" if written == "ours, exported" else None)


def test_layers_of_several_ranks_and_convolutions_are_filled_up(tiny_base, tmp_path) -> None:
    unet = load_family(tiny_base).empty_denoiser()
    conv, linear = "down_blocks.0.resnets.0.conv1", "add_embedding.linear_2"
    tensors = {}
    for module, rank in ((conv, 2), (linear, 5)):
        outputs, *inputs = unet.get_submodule(module).weight.shape
        tensors[f"{kohya_name(module)}.lora_down.weight"] = torch.randn(rank, *inputs).half()
        tensors[f"{kohya_name(module)}.lora_up.weight"] = torch.randn(outputs, rank, *[1] * (len(inputs) - 1)).half()
        tensors[f"{kohya_name(module)}.alpha"] = torch.tensor(1.0)
    read = read_lora(write(tmp_path / "a.safetensors", tensors), tiny_base)
    assert read.rank == 5 and read.tensors[f"{conv}.lora_A.weight"].dtype == torch.float32
    up, down = (tensors[f"{kohya_name(conv)}.lora_{side}.weight"].float().flatten(1) for side in ("up", "down"))
    assert torch.allclose(delta(read, conv), 0.5 * up @ down, atol=1e-4)
    save_adapter(read, tmp_path / "again")
    pipeline = load_family(tiny_base).load_pipeline()
    pipeline.load_lora_weights(tmp_path / "again")


def test_text_encoders_are_left_out_with_a_warning(tiny_adapter, tiny_base, tmp_path, caplog) -> None:
    text = {f"text_encoder.layers.0.q_proj.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"}
    both = write(tmp_path / "a.safetensors", of_diffusers(tiny_adapter) | text)
    assert read_lora(both, tiny_base).modules() == tiny_adapter.modules()
    assert "text encoders (2 tensors). These are not taken over" in caplog.text
    with pytest.raises(AdapterError, match="no LoRA for a UNet, only for text encoders"):
        read_lora(write(tmp_path / "b.safetensors", text), tiny_base)


def test_only_one_safetensors_file_is_taken(tiny_adapter, tmp_path) -> None:
    (tmp_path / "evil.ckpt").write_bytes(pickle.dumps({}))
    for source in (tmp_path, tmp_path / "evil.ckpt"):
        with pytest.raises(AdapterError, match=r"evil\.ckpt is no \.safetensors file.* run code"):
            find_lora(str(source))
    with pytest.raises(AdapterError, match="No adapter"):
        find_lora(str(tmp_path / "none"))
    one = write(tmp_path / "one.safetensors", of_diffusers(tiny_adapter))
    assert find_lora(str(tmp_path)) == one
    write(tmp_path / "two.safetensors", of_diffusers(tiny_adapter))
    with pytest.raises(AdapterError, match=r"one\.safetensors', 'two"):
        find_lora(str(tmp_path))
    ours = save_adapter(tiny_adapter, tmp_path)
    assert find_lora(str(tmp_path)) == ours == tmp_path / WEIGHTS_NAME and is_ours(ours)


def spoilt(adapter, how: str) -> dict[str, torch.Tensor]:
    tensors, module = of_diffusers(adapter), f"unet.{adapter.modules()[0]}"
    a, b = (tensors[f"{module}.lora_{side}.weight"] for side in "AB")
    return {
        "another shape": tensors | {f"{module}.lora_A.weight": a[:, 1:]},
        "another rank": tensors | {f"{module}.lora_A.weight": a[1:]},
        "flat": tensors | {f"{module}.lora_A.weight": a[0]},
        "a scalar": tensors | {f"{module}.lora_A.weight": a[0, 0]},
        "half a layer": {key: tensor for key, tensor in tensors.items() if key != f"{module}.lora_B.weight"},
        "no number": tensors | {f"{module}.lora_B.weight": b * torch.nan},
        "another model's layer": tensors | {f"unet.x.{key}": a for key in ("lora_A.weight", "lora_B.weight")},
        "DoRA": tensors | {f"{module}.lora_magnitude_vector": a[0]},
        "kohya's DoRA": {"lora_unet_x.dora_scale": a},
        "LoHa": {"lora_unet_x.hada_w1_a": a},
        "a bias": tensors | {f"{module}.lora_B.bias": a[0]},
        "a whole model": {"unet.conv_in.weight": a},
        "nothing": {},
    }[how]


@pytest.mark.parametrize(
    ("how", "said"),
    [("another shape", "does not fit the base model .*1 of 32 layers"), ("another rank", "has factors of"), ("flat", "factors"),
     ("a scalar", "factors"), ("half a layer", "lacks one of its two"), ("no number", "no numbers"), ("nothing", "no LoRA for"),
     ("another model's layer", "x is no layer there"), ("DoRA", "DoRA"), ("kohya's DoRA", "DoRA"), ("LoHa", "cannot be read"),
     ("a bias", "no part of a plain LoRA"), ("a whole model", "no part of a plain LoRA")],
)  # fmt: skip
def test_what_is_no_lora_of_the_base_is_refused_in_a_line(tiny_adapter, tiny_base, tmp_path, how, said) -> None:
    with pytest.raises(AdapterError, match=said) as error:
        read_lora(write(tmp_path / "a.safetensors", spoilt(tiny_adapter, how)), tiny_base)
    assert "a.safetensors" in str(error.value) and "\n" not in str(error.value)


def test_damaged_files_and_headers_are_refused(tiny_adapter, tiny_base, tmp_path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"\x80\x04 no safetensors")
    for reading in (is_ours, lambda file: read_lora(file, tiny_base)):
        with pytest.raises(AdapterError, match="damaged, or no safetensors"):
            reading(path)
    for header in ({"lora_adapter_metadata": "{"}, {"b4m": "{"}, {"lora_adapter_metadata": '{"unet.lora_alpha": NaN}'}):
        with pytest.raises(AdapterError, match="cannot be read as a LoRA"):
            read_lora(write(path, of_diffusers(tiny_adapter), **header), tiny_base)
    write(path, of_diffusers(tiny_adapter), b4m='{"token": 3, "noun": "cup", "name": "../x", "kind": "content"}')
    about = read_lora(path, tiny_base).metadata
    assert (about["noun"], about["name"], about["kind"]) == ("cup", "a", "lora") and "token" not in about


def test_an_adapter_of_ours_is_held_against_the_base_too(tiny_adapter, tiny_base) -> None:
    unet = load_family(tiny_base).empty_denoiser()
    require_layers(tiny_adapter, unet, "base", "cup")
    tiny_adapter.tensors = {f"x.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"}
    with pytest.raises(AdapterError, match=r"cup does not fit the base model base: 1 of 1 layers.*--env=sdxl"):
        require_layers(tiny_adapter, unet, "base", "cup")


def test_a_lora_of_another_architecture_is_refused_in_a_line(tiny_adapter, tiny_base, tiny_flow, tmp_path) -> None:
    of_unet = write(tmp_path / "unet.safetensors", of_diffusers(tiny_adapter))
    tensors = {key.replace("unet.", "transformer."): value for key, value in of_diffusers(tiny_adapter).items()}
    of_transformer = write(tmp_path / "transformer.safetensors", tensors)
    flux2 = tiny_flow("flux2")
    for file, base in ((of_unet, flux2), (of_transformer, flux2), (of_transformer, tiny_base)):
        said = rf"{file.name} does not fit the base model {base.path}: 32 of 32 layers, .* is no layer there\. Name the base"
        with pytest.raises(AdapterError, match=said) as error:
            read_lora(file, base)
        assert "\n" not in str(error.value)
