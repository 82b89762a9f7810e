"""Transformers of diffusers under the names that their authors gave the tensors: what model sites and GGUF files hold."""

import re
from collections.abc import Callable, Iterable

import torch

Tensors = dict[str, torch.Tensor]
Rules = list[tuple[str, str]]


def _renamed(tensors: Tensors, rules: Rules) -> Tensors:
    """Each name by all rules (regular expression, replacement), one after another."""
    made = {}
    for name, value in tensors.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        made[name] = value
    return made


def _fused(tensors: Tensors, groups: Iterable[tuple[tuple[str, ...], str]]) -> Tensors:
    """Matrices and biases whose names end alike laid one under another: (ends of the parts, the whole's)."""
    made = dict(tensors)
    for parts, whole in groups:
        first, *_ = parts
        for name in [name for name in made if re.search(rf"\.{re.escape(first)}\.(weight|bias)$", name)]:
            start, end = name[: name.rindex(first)], name.rsplit(".", 1)[1]
            if all(f"{start}{part}.{end}" in made for part in parts):
                made[f"{start}{whole}.{end}"] = torch.cat([made.pop(f"{start}{part}.{end}") for part in parts])
    return made


def _swapped(tensors: Tensors, *starts: str) -> Tensors:
    """Scale and shift in the authors' order, shift first."""
    return {name: torch.cat(value.chunk(2)[::-1]) if name.startswith(starts) else value for name, value in tensors.items()}


_NORMS = [(rf"norm_{key}\.weight$", f"norm.{word}_norm.scale") for key, word in (("q", "query"), ("k", "key"))]
_BOTH = ((("to_q", "to_k", "to_v"), "qkv"), (("add_q_proj", "add_k_proj", "add_v_proj"), "add_qkv"))


def sd3(tensors: Tensors) -> Tensors:
    last = max(int(name.split(".")[1]) for name in tensors if name.startswith("transformer_blocks"))
    made = _swapped(tensors, "norm_out.linear", f"transformer_blocks.{last}.norm1_context.linear")
    rules = [
        (r"^pos_embed\.pos_embed$", "pos_embed"), (r"^pos_embed\.proj", "x_embedder.proj"),
        (r"^time_text_embed\.timestep_embedder", "t_embedder"), (r"^time_text_embed\.text_embedder", "y_embedder"),
        (r"embedder\.linear_1", "embedder.mlp.0"), (r"embedder\.linear_2", "embedder.mlp.2"),
        (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"), (r"^proj_out", "final_layer.linear"),
        (r"^transformer_blocks", "joint_blocks"),
        (r"norm1\.linear", "x_block.adaLN_modulation.1"), (r"norm1_context\.linear", "context_block.adaLN_modulation.1"),
        (r"(attn2?)\.(qkv|norm_[qk])", r"x_block.\1.\2"), (r"attn\.to_out\.0", "x_block.attn.proj"),
        (r"attn2\.to_out\.0", "x_block.attn2.proj"), (r"attn\.add_qkv", "context_block.attn.qkv"),
        (r"attn\.norm_added_", "context_block.attn.norm_"), (r"attn\.to_add_out", "context_block.attn.proj"),
        (r"norm_([qk])\.weight", r"ln_\1.weight"),
        (r"ff\.net\.0\.proj", "x_block.mlp.fc1"), (r"ff\.net\.2", "x_block.mlp.fc2"),
        (r"ff_context\.net\.0\.proj", "context_block.mlp.fc1"), (r"ff_context\.net\.2", "context_block.mlp.fc2"),
    ]  # fmt: skip
    return _renamed(_fused(made, _BOTH), rules)


def flux(tensors: Tensors) -> Tensors:
    made = _fused(_swapped(tensors, "norm_out.linear"), [(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear1")])
    rules = [
        (r"^time_text_embed\.timestep_embedder", "time_in"), (r"^time_text_embed\.text_embedder", "vector_in"),
        (r"^time_text_embed\.guidance_embedder", "guidance_in"), (r"_in\.linear_1", "_in.in_layer"),
        (r"_in\.linear_2", "_in.out_layer"), (r"^context_embedder", "txt_in"), (r"^x_embedder", "img_in"),
        (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"), (r"^proj_out", "final_layer.linear"),
        (r"^single_transformer_blocks\.(\d+)\.norm\.linear", r"single_blocks.\1.modulation.lin"),
        (r"^single_transformer_blocks\.(\d+)\.attn\.", r"single_blocks.\1."),
        (r"^single_transformer_blocks\.(\d+)\.proj_out", r"single_blocks.\1.linear2"),
        (r"^single_transformer_blocks", "single_blocks"), (r"^transformer_blocks", "double_blocks"),
        (r"norm1\.linear", "img_mod.lin"), (r"norm1_context\.linear", "txt_mod.lin"),
        (r"attn\.qkv", "img_attn.qkv"), (r"attn\.add_qkv", "txt_attn.qkv"), (r"attn\.to_out\.0", "img_attn.proj"),
        (r"attn\.to_add_out", "txt_attn.proj"),
        (r"\.attn\.norm_added_", ".txt_attn.norm_"), (r"\.attn\.norm_", ".img_attn.norm_"),
        (r"ff\.net\.0\.proj", "img_mlp.0"), (r"ff\.net\.2", "img_mlp.2"),
        (r"ff_context\.net\.0\.proj", "txt_mlp.0"), (r"ff_context\.net\.2", "txt_mlp.2"), *_NORMS,
    ]  # fmt: skip
    return _renamed(_fused(made, _BOTH), rules)


def flux2(tensors: Tensors) -> Tensors:
    rules = [
        (r"^time_guidance_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
        (r"^time_guidance_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
        (r"^context_embedder", "txt_in"), (r"^x_embedder", "img_in"),
        (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"), (r"^proj_out", "final_layer.linear"),
        (r"(_stream_modulation\w*)\.linear", r"\1.lin"),
        (r"^single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj", r"single_blocks.\1.linear1"),
        (r"^single_transformer_blocks\.(\d+)\.attn\.to_out", r"single_blocks.\1.linear2"),
        (r"^single_transformer_blocks\.(\d+)\.attn\.", r"single_blocks.\1."), (r"^transformer_blocks", "double_blocks"),
        (r"attn\.qkv", "img_attn.qkv"), (r"attn\.add_qkv", "txt_attn.qkv"), (r"attn\.to_out\.0", "img_attn.proj"),
        (r"attn\.to_add_out", "txt_attn.proj"),
        (r"\.attn\.norm_added_", ".txt_attn.norm_"), (r"\.attn\.norm_", ".img_attn.norm_"),
        (r"ff\.linear_in", "img_mlp.0"), (r"ff\.linear_out", "img_mlp.2"),
        (r"ff_context\.linear_in", "txt_mlp.0"), (r"ff_context\.linear_out", "txt_mlp.2"), *_NORMS,
    ]  # fmt: skip
    return _renamed(_fused(_swapped(tensors, "norm_out.linear"), _BOTH), rules)


def z_image(tensors: Tensors) -> Tensors:
    rules = [
        (r"^all_final_layer\.2-1\.", "final_layer."), (r"^all_x_embedder\.2-1\.", "x_embedder."),
        (r"attention\.to_out\.0", "attention.out"), (r"attention\.norm_([qk])", r"attention.\1_norm"),
    ]  # fmt: skip
    return _renamed(_fused(tensors, _BOTH), rules)


ORIGINAL: dict[str, Callable[[Tensors], Tensors]] = {
    "sd3": sd3,
    "flux": flux,
    "schnell": flux,
    "flux2": flux2,
    "z_image": z_image,
    "qwen_image": dict,
}
"""By the names of `tiny_models.FLOWS`. Qwen-Image's authors published it in diffusers' format."""
