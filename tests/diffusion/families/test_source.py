"""Base models in one file give what the same weights in diffusers' format give."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import save_file

from b4m_pipeline.common.tensor_files import Stored
from b4m_pipeline.diffusion.families import BaseModelError, base_model_id, load_family
from b4m_pipeline.diffusion.families.source import Source
from b4m_pipeline.diffusion.params import BaseModelParams
from tests.diffusion.families.original import as_single_file


@pytest.fixture(scope="module")
def files(tiny_sdxl: Path, tiny_sd: Path, tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """By family: a model's folder and the same in one file."""
    folder = tmp_path_factory.mktemp("files")
    return {
        name: (own, as_single_file(own, folder / f"{name}.safetensors")) for name, own in (("sdxl", tiny_sdxl), ("sd", tiny_sd))
    }


def configuration(folder: Path, place: Path) -> Path:
    """The folder without its weights."""
    return Path(shutil.copytree(folder, place, ignore=shutil.ignore_patterns("*.safetensors")))


@pytest.mark.parametrize("name", ["sdxl", "sd"])
def test_every_part_is_read_from_the_file(name, files, tmp_path) -> None:
    folder, file = files[name]
    config = configuration(folder, tmp_path / "config")
    whole = load_family(BaseModelParams(path=str(folder), resolution=32))
    single = load_family(BaseModelParams(path=str(file), config=str(config), resolution=32))
    assert type(single) is type(whole)
    for part in ("load_denoiser", "load_vae"):
        expected, got = getattr(whole, part)().state_dict(), getattr(single, part)().state_dict()
        assert expected.keys() == got.keys() and all(torch.equal(expected[key], got[key]) for key in expected)
    prompts = ["a cat", "a dog in knit style"]
    expected, got = whole.encode_prompts(prompts), single.encode_prompts(prompts)
    assert expected.keys() == got.keys() and all(torch.equal(expected[key], got[key]) for key in expected)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    assert torch.equal(whole.encode_pictures([picture])[0][0], single.encode_pictures([picture])[0][0])
    assert whole.empty_denoiser().config["block_out_channels"] == single.empty_denoiser().config["block_out_channels"]
    drawn = [
        family.load_pipeline()(
            ["a cat"], num_inference_steps=2, height=32, width=32, generator=torch.Generator().manual_seed(0)
        )
        for family in (whole, single)
    ]
    assert np.array_equal(*(np.asarray(images.images[0]) for images in drawn))


def test_a_file_is_known_by_its_content_wherever_it_lies(files, tiny_sdxl, tmp_path) -> None:
    _, file = files["sdxl"]
    copy = Path(shutil.copy(file, tmp_path / "other.safetensors"))
    one, two = (base_model_id(BaseModelParams(path=str(path))) for path in (file, copy))
    assert one.split("@")[1] == two.split("@")[1] and one.startswith("sdxl@") and two.startswith("other@")
    config = str(configuration(tiny_sdxl, tmp_path / "config"))
    digests = {load_family(BaseModelParams(path=str(path), config=config)).parts_digest() for path in (file, copy)}
    assert len(digests) == 1
    with open(copy, "r+b") as handle:
        handle.seek(-4, 2)
        handle.write(b"\1\2\3\4")
    assert base_model_id(BaseModelParams(path=str(copy))).split("@")[1] != one.split("@")[1]


def test_what_a_file_lacks_comes_from_the_configuration(files, tiny_sdxl, tmp_path) -> None:
    from safetensors.torch import load_file

    unet = {
        name: value for name, value in load_file(files["sdxl"][1]).items() if name.startswith("model.") or "embedders.1" in name
    }
    alone = {name: value for name, value in unet.items() if not name.startswith("first_stage_model.")}
    save_file(alone, tmp_path / "no_vae.safetensors")
    family = load_family(BaseModelParams(path=str(tmp_path / "no_vae.safetensors"), config=str(tiny_sdxl), resolution=32))
    expected = load_family(BaseModelParams(path=str(tiny_sdxl), resolution=32)).load_vae().state_dict()
    got = family.load_vae().state_dict()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    bare = configuration(tiny_sdxl, tmp_path / "config")
    family = load_family(BaseModelParams(path=str(tmp_path / "no_vae.safetensors"), config=str(bare), resolution=32))
    with pytest.raises(BaseModelError, match="no_vae.safetensors' has no usable vae"):
        family.load_vae()


def test_files_that_are_no_base_model_are_refused(files, tiny_sdxl, tiny_sd, tmp_path) -> None:
    (tmp_path / "old.ckpt").write_bytes(b"pickled")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    save_file({"unet.to_k.lora_A.weight": torch.ones(1)}, tmp_path / "lora.safetensors")
    wrong = [
        ({"path": str(tmp_path / "old.ckpt")}, "read from .safetensors alone"),
        ({"path": str(tmp_path / "absent.safetensors")}, "there is no such file"),
        ({"path": str(tmp_path / "torn.safetensors")}, "cannot be read as safetensors"),
        ({"path": str(tmp_path / "lora.safetensors")}, "looks like a LoRA"),
        ({"path": str(files["sd"][1]), "config": str(tiny_sdxl)}, "a file of StableDiffusion, and base_model.config"),
        ({"path": str(files["sd"][1]), "config": str(tmp_path)}, "base_model.config .* has no model_index.json"),
        ({"path": str(tiny_sd), "config": str(tiny_sd)}, "base_model.config is for a single file"),
    ]
    for given, message in wrong:
        with pytest.raises(BaseModelError, match=message):
            load_family(BaseModelParams(**given))


def test_number_formats_are_those_of_the_files_that_are_read(files, tmp_path) -> None:
    folder, file = files["sdxl"]
    half = DiffusionPipeline.from_pretrained(folder).to(torch.float16)
    half.save_pretrained(tmp_path / "both", variant="fp16")
    shutil.copytree(folder, tmp_path / "both", dirs_exist_ok=True)
    plain, variant = (BaseModelParams(path=str(tmp_path / "both"), variant=name) for name in (None, "fp16"))
    count = sum(weight.numel() for weight in half.unet.parameters())
    assert load_family(plain).source.stored("unet") == Stored(torch.float32, count)
    assert load_family(variant).source.stored("unet") == Stored(torch.float16, count)
    single = load_family(BaseModelParams(path=str(file), config=str(folder)))
    whole = load_family(BaseModelParams(path=str(folder)))
    for part in ("unet", "vae"):
        assert single.source.stored(part) == whole.source.stored(part)
    # in one file both encoders are counted together; OpenCLIP's has no projection of positions' ids, but one of its own
    encoders = [whole.source.stored(part).parameters for part in ("text_encoder", "text_encoder_2")]
    assert single.source.stored("text_encoder_2").parameters == pytest.approx(sum(encoders), rel=0.02)


def test_a_model_of_the_hub_is_looked_up_in_the_cache(files, tmp_path, monkeypatch) -> None:
    folder, _ = files["sdxl"]
    cached = tmp_path / "models--nobody--tiny"
    shutil.copytree(folder, cached / "snapshots" / "0123")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123")
    for name in ("constants.HF_HUB_CACHE", "file_download.HF_HUB_CACHE", "_snapshot_download.constants.HF_HUB_CACHE"):
        monkeypatch.setattr(f"huggingface_hub.{name}", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source, other = (Source(BaseModelParams(path=f"nobody/{name}")) for name in ("tiny", "other"))
    assert source.stored("unet") == Source(BaseModelParams(path=str(folder))).stored("unet") is not None
    assert other.stored("unet") is None
