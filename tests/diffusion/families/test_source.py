"""Where the parts of a base model lie, and what their files say of themselves."""

import shutil

import torch
from diffusers import DiffusionPipeline

from b4m_pipeline.common.tensor_files import Stored
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.families.source import Source
from b4m_pipeline.diffusion.params import BaseModelParams


def test_number_formats_are_those_of_the_files_that_are_read(tiny_sdxl, tmp_path) -> None:
    half = DiffusionPipeline.from_pretrained(tiny_sdxl).to(torch.float16)
    half.save_pretrained(tmp_path / "both", variant="fp16")
    shutil.copytree(tiny_sdxl, tmp_path / "both", dirs_exist_ok=True)
    plain, variant = (BaseModelParams(path=str(tmp_path / "both"), variant=name) for name in (None, "fp16"))
    count = sum(weight.numel() for weight in half.unet.parameters())
    assert load_family(plain).source.stored("unet") == Stored(torch.float32, count)
    assert load_family(variant).source.stored("unet") == Stored(torch.float16, count)


def test_a_model_of_the_hub_is_looked_up_in_the_cache(tiny_sdxl, tmp_path, monkeypatch) -> None:
    cached = tmp_path / "models--nobody--tiny"
    shutil.copytree(tiny_sdxl, cached / "snapshots" / "0123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    for name in ("constants.HF_HUB_CACHE", "file_download.HF_HUB_CACHE", "_snapshot_download.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(f"huggingface_hub.{name}", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source, other = (Source(BaseModelParams(path=f"nobody/{name}")) for name in ("tiny", "other"))
    assert source.stored("unet") == Source(BaseModelParams(path=str(tiny_sdxl))).stored("unet") is not None
    assert other.stored("unet") is None
