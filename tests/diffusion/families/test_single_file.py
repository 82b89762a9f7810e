"""Base models in one file give what the same weights in diffusers' format give."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
from PIL import Image
from safetensors.torch import save_file

from b4m_pipeline.diffusion.families import BaseModelError, base_model_id, load_family
from b4m_pipeline.diffusion.params import BaseModelParams
from tests.diffusion.families.original import as_single_file, vae_names
from tests.diffusion.families.original_flows import ORIGINAL
from tests.diffusion.families.original_flows import sd3 as sd3_names
from tests.tiny_models import FLOWS, SIDE, clip_encoder, sd3


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
        ({"path": str(tmp_path / "old.ckpt")}, "read from .safetensors and .gguf alone"),
        ({"path": str(tmp_path / "absent.safetensors")}, "there is no such file"),
        ({"path": str(tmp_path / "torn.safetensors")}, "cannot be read as safetensors"),
        ({"path": str(tmp_path / "lora.safetensors")}, "looks like a LoRA"),
        ({"path": str(files["sd"][1]), "config": str(tiny_sdxl)}, "a file of StableDiffusion, and base_model.config"),
        ({"path": str(files["sd"][1]), "config": str(tmp_path)}, "base_model.config .* has no model_index.json"),
        ({"path": str(tiny_sd), "config": str(tiny_sd)}, "base_model.config is for a single file"),
        ({"path": str(files["sd"][1]), "family": "Flux"}, "is of StableDiffusion, and this .* for Flux: choose --env=sd15"),
        ({"path": str(tiny_sd), "family": "StableDiffusionXL"}, "is of StableDiffusion, and this .*: choose --env=sd15"),
    ]
    for given, message in wrong:
        with pytest.raises(BaseModelError, match=message):
            load_family(BaseModelParams(**given))


def test_a_files_parts_are_counted_by_its_header(files) -> None:
    folder, file = files["sdxl"]
    single = load_family(BaseModelParams(path=str(file), config=str(folder)))
    whole = load_family(BaseModelParams(path=str(folder)))
    for part in ("unet", "vae"):
        assert single.source.stored(part) == whole.source.stored(part)
    for part in ("text_encoder", "text_encoder_2"):  # OpenCLIP's has no projection of positions' ids, but one of its own
        assert single.source.stored(part).parameters == pytest.approx(whole.source.stored(part).parameters, rel=0.02)


@pytest.fixture(scope="module")
def narrow_flux():
    """Diffusers' converter of FLUX.1 has the transformer's width in its code: here with the tiny model's in its place."""
    code, wide = convert_flux_transformer_checkpoint_to_diffusers.__code__, 3072
    assert wide in code.co_consts
    narrow = tuple(32 if constant == wide else constant for constant in code.co_consts)
    convert_flux_transformer_checkpoint_to_diffusers.__code__ = code.replace(co_consts=narrow)
    yield
    convert_flux_transformer_checkpoint_to_diffusers.__code__ = code


@pytest.fixture(scope="module")
def flow_files(tiny_flow, narrow_flux, tmp_path_factory):
    """Name in `tiny_models.FLOWS` -> the transformer's weights under their authors' names."""
    made: dict[str, dict] = {}

    def get(name: str) -> dict[str, torch.Tensor]:
        if name not in made:
            weights = load_family(tiny_flow(name)).load_denoiser().state_dict()
            made[name] = {key: value.clone().contiguous() for key, value in ORIGINAL[name](weights).items()}
        return made[name]

    return get


def single(weights: dict[str, torch.Tensor], file: Path, base: BaseModelParams, **changes) -> BaseModelParams:
    """A base model of one file with these weights, and the rest of another one."""
    save_file(weights, file)
    return BaseModelParams(**{"path": str(file), "config": base.path, "resolution": base.resolution} | changes)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("name", FLOWS)
def test_a_transformer_alone_is_read_to_the_last_weight(name, prefix, flow_files, tiny_flow, tmp_path) -> None:
    base = tiny_flow(name)
    weights = {prefix + key: value for key, value in flow_files(name).items()}
    params = single(weights, tmp_path / "own.safetensors", base)
    family, whole = load_family(params), load_family(base)
    assert type(family) is type(whole)
    family.check_parts()
    expected, got = whole.load_denoiser().state_dict(), family.load_denoiser().state_dict()
    assert expected.keys() == got.keys() and all(torch.equal(expected[key], got[key]) for key in expected)
    assert family.source.stored("transformer") == whole.source.stored("transformer")
    if not prefix:  # text encoders, VAE and scheduler are the folder's
        asked = {"prompt": "a cat", "num_inference_steps": 1, "height": SIDE, "width": SIDE, "output_type": "np"}
        drawn = [own.load_pipeline()(**asked, generator=torch.Generator().manual_seed(0)) for own in (family, whole)]
        assert np.array_equal(*(images.images[0] for images in drawn))


def test_encoders_and_vae_may_lie_in_the_file_too(flow_files, tiny_flow, tmp_path) -> None:
    """As in the files of SD 3 with all its encoders. CLIP-L's projection is none there."""
    pipeline = sd3()
    pipeline.text_encoder, pipeline.text_encoder_2 = (clip_encoder(pipeline.tokenizer, width, True) for width in (16, 8))
    with torch.no_grad():
        pipeline.text_encoder.text_projection.weight.copy_(torch.eye(16))
    pipeline.save_pretrained(tmp_path / "whole")
    weights = {f"model.diffusion_model.{key}": value for key, value in sd3_names(pipeline.transformer.state_dict()).items()}
    weights |= vae_names(pipeline.vae)
    encoders = ("clip_l", pipeline.text_encoder), ("clip_g", pipeline.text_encoder_2), ("t5xxl", pipeline.text_encoder_3)
    for key, encoder in encoders:
        own = encoder.state_dict()
        own.pop("encoder.embed_tokens.weight", None)  # the same as T5's shared ones
        weights |= {f"text_encoders.{key}.transformer.{name}": value for name, value in own.items()}
    bare = BaseModelParams(path=str(configuration(tmp_path / "whole", tmp_path / "config")), resolution=SIDE)
    weights = {name: value.clone().contiguous() for name, value in weights.items()}
    family = load_family(single(weights, tmp_path / "all.safetensors", bare))
    whole = load_family(BaseModelParams(path=str(tmp_path / "whole"), resolution=SIDE))
    family.check_parts()
    expected, got = whole.encode_prompts(["a cat in ink"]), family.encode_prompts(["a cat in ink"])
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    expected_vae, vae = whole.load_vae().state_dict(), family.load_vae().state_dict()
    assert all(torch.equal(vae[key], value) for key, value in expected_vae.items())
    no_t5 = {name: value for name, value in weights.items() if "t5xxl" not in name}  # as in those without it
    config = BaseModelParams(path=str(tmp_path / "whole"), resolution=SIDE)
    got = load_family(single(no_t5, tmp_path / "clips.safetensors", config)).encode_prompts(["a cat in ink"])
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_a_file_of_flux_may_hold_all_parts(flow_files, tiny_flow, tmp_path) -> None:
    whole, base = load_family(tiny_flow("flux")), tiny_flow("flux")
    pipeline = whole.load_pipeline()
    weights = {f"model.diffusion_model.{key}": value for key, value in flow_files("flux").items()}
    weights |= {key.replace("first_stage_model.", "vae."): value for key, value in vae_names(pipeline.vae).items()}
    clip = {f"text_model.{name.removeprefix('text_model.')}": own for name, own in pipeline.text_encoder.state_dict().items()}
    for key, own in (("clip_l", clip), ("t5xxl", pipeline.text_encoder_2.state_dict())):
        weights |= {f"text_encoders.{key}.transformer.{name}": value for name, value in own.items()}
    weights = {name: value.clone().contiguous() for name, value in weights.items()}
    bare = base.model_copy(update={"path": str(configuration(Path(base.path), tmp_path / "config"))})
    family = load_family(single(weights, tmp_path / "all.safetensors", bare))
    expected, got = (own.encode_prompts(["a cat in ink"]) for own in (whole, family))
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    vae, own = pipeline.vae.state_dict(), family.load_vae().state_dict()
    assert all(torch.equal(own[key], value) for key, value in vae.items())


def test_weights_that_do_not_fit_are_refused_before_they_are_read(flow_files, tiny_flow, tmp_path) -> None:
    weights, base = flow_files("flux2"), tiny_flow("flux2")
    first = "double_blocks.0.img_attn.proj.weight"
    short = {name: value for name, value in weights.items() if name != first}
    wide = weights | {"txt_in.weight": torch.ones(64, 48)}
    scaled = {name: value.to(torch.float8_e4m3fn) for name, value in weights.items()}
    scaled["double_blocks.0.img_attn.proj.scale_weight"] = torch.ones(1)
    wrong = [
        (short, r"does not fit the Flux2Transformer2DModel .*: it lacks 1 of \d+ tensors, transformer_blocks.0.attn.to_out.0"),
        (wide, r"context_embedder.weight is \(64, 48\) in the file and \(32, 48\) by the configuration. Name the config"),
        (scaled, r"has scaled 8-bit weights \(double_blocks.0.img_attn.proj.scale_weight\)"),
    ]
    for tensors, message in wrong:
        with pytest.raises(BaseModelError, match=message):
            load_family(single(tensors, tmp_path / "wrong.safetensors", base)).check_parts()
    flux = {name: value for name, value in flow_files("flux").items() if "txt_in" not in name}
    with pytest.raises(BaseModelError, match="does not fit the FluxTransformer2DModel .*: it lacks txt_in.weight"):
        load_family(single(flux, tmp_path / "wrong.safetensors", tiny_flow("flux"))).check_parts()
    with pytest.raises(BaseModelError, match="is a file of Flux2Klein, and base_model.config .* of ZImage.*--env=flux2"):
        load_family(single(weights, tmp_path / "wrong.safetensors", tiny_flow("z_image")))
