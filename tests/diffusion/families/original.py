"""A model of diffusers as one file with the names that Stable Diffusion's authors gave its tensors: what model sites share."""

import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def _in_unet(name: str, layers: int, attended: set[int]) -> str:
    """The original name of a UNet's tensor. layers: of a block; attended: up blocks with attention."""
    for own, original in _OUTSIDE.items():
        if name.startswith(f"{own}."):
            return name.replace(own, original, 1)
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        kind, number, rest = found.groups()
        place = 1 if kind == "attentions" else 2 * int(number)
        return f"middle_block.{place}.{_in_resnet(rest) if kind == 'resnets' else rest}"
    found = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name)
    assert found, name
    way, block, kind, number, rest = found.groups()
    if kind == "downsamplers":
        return f"input_blocks.{(int(block) + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{int(block) * (layers + 1) + layers}.{2 if int(block) in attended else 1}.{rest}"
    first = 1 if way == "down" else 0
    place = f"{'in' if way == 'down' else 'out'}put_blocks.{first + int(block) * (layers + 1) + int(number)}"
    return f"{place}.1.{rest}" if kind == "attentions" else f"{place}.0.{_in_resnet(rest)}"


def _in_resnet(rest: str) -> str:
    own, _, end = rest.partition(".")
    return f"{_RESNET[own]}.{end}"


def _in_vae(name: str, blocks: int) -> str:
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda found: f"up.{blocks - 1 - int(found[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{blocks - 1 - int(found[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_norm_out", "norm_out")
    for own, original in (("to_out.0", "proj_out"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("group_norm", "norm")):
        name = name.replace(f"attn_1.{own}.", f"attn_1.{original}.")
    return name.replace("conv_shortcut", "nin_shortcut")


def _open_clip(tensors: Tensors, layers: int) -> Tensors:
    """OpenCLIP's names: queries, keys and values in one matrix, the projection transposed."""
    plain = {name.removeprefix("text_model."): value for name, value in tensors.items()}
    made = {
        "positional_embedding": plain["embeddings.position_embedding.weight"],
        "token_embedding.weight": plain["embeddings.token_embedding.weight"],
        "ln_final.weight": plain["final_layer_norm.weight"],
        "ln_final.bias": plain["final_layer_norm.bias"],
        "text_projection": plain["text_projection.weight"].T,
    }
    parts = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    parts["self_attn.out_proj"] = "attn.out_proj"
    for layer in range(layers):
        own, original = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for end in ("weight", "bias"):
            made |= {f"{original}.{new}.{end}": plain[f"{own}.{old}.{end}"] for old, new in parts.items()}
            made[f"{original}.attn.in_proj_{end}"] = torch.cat([plain[f"{own}.self_attn.{key}_proj.{end}"] for key in "qkv"])
    return made


def vae_names(vae: AutoencoderKL) -> Tensors:
    """The VAE's tensors in a file of several parts."""
    made = {}
    for name, value in vae.state_dict().items():
        flat = ".attentions.0." in name and name.endswith("weight") and value.ndim == 2  # a convolution of one pixel there
        own = _in_vae(name, len(vae.config.block_out_channels))
        made[f"first_stage_model.{own}"] = value[..., None, None] if flat else value
    return made


def as_single_file(folder: Path, file: Path) -> Path:
    """Write a Stable Diffusion (XL) in diffusers' format as one file."""
    pipeline = DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    unet, made = pipeline.unet, vae_names(pipeline.vae)
    attended = {index for index, block in enumerate(unet.up_blocks) if hasattr(block, "attentions")}
    for name, value in unet.state_dict().items():
        made[f"model.diffusion_model.{_in_unet(name, unet.config.layers_per_block, attended)}"] = value
    text = pipeline.text_encoder.state_dict()
    text = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in text.items()}
    if second := getattr(pipeline, "text_encoder_2", None):
        made |= {f"conditioner.embedders.0.transformer.{name}": value for name, value in text.items()}
        own = _open_clip(second.state_dict(), second.config.num_hidden_layers)
        made |= {f"conditioner.embedders.1.model.{name}": value for name, value in own.items()}
    else:
        made |= {f"cond_stage_model.transformer.{name}": value for name, value in text.items()}
    save_file({name: value.clone().contiguous() for name, value in made.items()}, file)
    return file
