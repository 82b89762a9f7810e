"""Frames and layers of the tiny random SDXL."""

import torch
from diffusers import UNet2DConditionModel

from b4m_pipeline.method.directions import Directions
from b4m_pipeline.method.frame import Frame
from b4m_pipeline.method.layers import export, find_layers, inject

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_embedding.linear_1", "time_emb_proj"]


def make_frame(unet, **changes) -> Frame:
    fields = {"seed": 0, "rank": 4, "alpha": 4.0, "split": 0.5, "init": "exact", "scale": 1.0, "base_model": "tiny"}
    return Frame(**(fields | {"layers": find_layers(unet, TARGETS)} | changes))


def words_frame(unet, **changes) -> Frame:
    """A frame whose cross-attention reads by directions: 4 of 24 for either half."""
    drawn = torch.linalg.qr(torch.randn(24, 8, generator=torch.Generator().manual_seed(5))).Q
    own = Directions(drawn[:, :4].contiguous(), drawn[:, 4:].contiguous())
    layers = [name for name in find_layers(unet, TARGETS) if name.endswith((".attn2.to_k", ".attn2.to_v"))]
    return make_frame(unet, words="0123", directions=dict.fromkeys(layers, own), **changes)


def forward(unet) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    noisy = torch.randn(2, 4, 16, 16, generator=generator)
    embeds = torch.randn(2, 6, 24, generator=generator)
    added = {"text_embeds": torch.randn(2, 16, generator=generator), "time_ids": torch.full((2, 6), 32.0)}
    return unet(noisy, torch.tensor([3, 700]), embeds, added_cond_kwargs=added).sample


def randomise(layers, seed=3):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in sorted(layers):
            for parameter in (layers[name].a, layers[name].b):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


METADATA = {"kind": "content", "name": "c", "base_model": "tiny", "data_digest": "d", "params": "{}", "code_version": "0"}


def export_half(unet_folder, side, seed, halves="orthogonal", frame_of=make_frame, **changes):
    unet = UNet2DConditionModel.from_pretrained(unet_folder, subfolder="unet")
    frame = frame_of(unet, **changes)
    layers = inject(unet, frame, halves)
    randomise(layers, seed)
    return export(layers, frame, METADATA, only=side)
