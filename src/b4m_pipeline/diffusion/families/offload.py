"""Drawing and encoding with little GPU memory: parts of a pipeline wait in the machine's memory until they are needed."""

from typing import Any, Literal

import torch

Offload = Literal["model", "group"]


def place(pipeline: Any, device: str, offload: Offload | None) -> Any:
    """The pipeline, ready to run on `device`: all of it there, or (on an NVIDIA GPU) one part or one layer at a time. What is
    offloaded decodes images one by one, and in tiles where they are larger than those its VAE was trained on."""
    if offload is None or device != "cuda":
        return pipeline.to(device)
    spare_vae(pipeline)
    if offload == "group":
        offload_groups(pipeline, device)
    else:
        pipeline.enable_model_cpu_offload(device=device)
    return pipeline


def offload_groups(pipeline: Any, device: str) -> None:
    """Bring each layer to `device` as it is called, the next ones ahead of it where the device copies beside calculating."""
    streams = device == "cuda"
    pipeline.enable_group_offload(onload_device=torch.device(device), offload_type="leaf_level", use_stream=streams)


def spare_vae(pipeline: Any) -> None:
    """Decode one image of a batch after another, and large ones in tiles."""
    if (vae := getattr(pipeline, "vae", None)) is not None:
        vae.enable_slicing()
        vae.enable_tiling()


def pictures_at_once(width: int, height: int) -> int:
    """How many pictures of this size a VAE encodes together: 16, or fewer where that would be a megapixel."""
    return max(1, min(16, 2**20 // (width * height)))
