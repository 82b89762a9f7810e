"""What was encoded is not encoded again, and what has changed is."""

import shutil

import pytest
import torch
from PIL import Image

from b4m_pipeline.diffusion.families import StableDiffusionXL, load_family
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.inputs.encode import encode_training_set
from b4m_pipeline.inputs.encoding_cache import EncodingCache, picture_key, prompt_key


@pytest.fixture
def counted(monkeypatch):
    """How many pictures and prompts were really encoded."""
    counts = {"pictures": 0, "prompts": 0}
    for kind in counts:
        original = getattr(StableDiffusionXL, f"encode_{kind}")

        def count(self, items, device="cpu", kind=kind, original=original, **keys):
            counts[kind] += len(items)
            return original(self, items, device, **keys)

        monkeypatch.setattr(StableDiffusionXL, f"encode_{kind}", count)
    return counts


def test_a_second_run_encodes_nothing_and_gets_the_same(tiny_manifest, tiny_base, tiny_training_set, tmp_path, counted):
    manifest, pictures = tiny_manifest
    first = encode_training_set(manifest, pictures, tiny_base, {"a hat": ""}, str(tmp_path))
    assert counted == {"pictures": 10, "prompts": manifest.caption.nunique() + 1}
    again = encode_training_set(manifest, pictures, tiny_base, {"a hat": ""}, str(tmp_path))
    assert counted["pictures"] == 10
    for own, other in ((first.tensors, again.tensors), (first.other_tensors, again.other_tensors)):
        assert own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)
    for key, value in tiny_training_set.tensors.items():
        assert torch.allclose(first.tensors[key], value, atol=1e-6)


def test_only_what_is_new_is_encoded(tiny_manifest, tiny_base, tmp_path, counted):
    manifest, pictures = tiny_manifest
    encode_training_set(manifest.iloc[:9], pictures, tiny_base, [], str(tmp_path))
    seen = dict(counted)
    key = manifest.picture[0]
    changed = pictures | {key: pictures[key].transpose(Image.Transpose.FLIP_LEFT_RIGHT)}
    encode_training_set(manifest, changed, tiny_base, ["another prompt"], str(tmp_path))
    assert counted["pictures"] - seen["pictures"] == 2  # the mirrored one and the tenth
    new = {*manifest.caption, "another prompt"} - set(manifest.caption[:9])
    assert counted["prompts"] - seen["prompts"] == len(new)


def test_the_key_knows_every_part_that_encodes(tiny_sdxl, tiny_base, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_sdxl, copy)
    params = BaseModelParams(path=str(copy), resolution=32)
    same = load_family(tiny_base).encoder_digest()
    assert load_family(params).encoder_digest() == same
    for part in ("unet/config.json", "vae/config.json", "text_encoder_2/model.safetensors", "tokenizer/tokenizer.json"):
        file = copy / part
        before = file.read_bytes()
        file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        assert (load_family(params).encoder_digest() == same) == part.startswith("unet")
        file.write_bytes(before)
    other_vae = params.model_copy(update={"vae": str(copy / "vae")})
    assert load_family(other_vae).encoder_digest() != same
    monkeypatch.setattr("b4m_pipeline.diffusion.families.base.recipe_code", lambda *parts: "another")
    assert load_family(params).encoder_digest() != same


def test_damaged_entries_and_a_disk_that_cannot_be_written_cost_time_alone(tmp_path, caplog):
    cache = EncodingCache(tmp_path, "encoder")
    key = prompt_key("a cat")
    assert cache.get(key) is None
    cache.put(key, {"x": torch.ones(2)})
    assert torch.equal(cache.get(key)["x"], torch.ones(2))
    (file,) = (tmp_path / "encoder").iterdir()
    file.write_bytes(b"half")
    assert cache.get(key) is None and "is encoded anew" in caplog.text
    (tmp_path / "file").touch()
    EncodingCache(tmp_path / "file", "encoder").put(key, {"x": torch.ones(2)})
    assert "goes on without it" in caplog.text
    nowhere = EncodingCache(None, "encoder")
    nowhere.put(key, {"x": torch.ones(2)})
    assert nowhere.get(key) is None


def test_keys_tell_pictures_and_prompts_apart():
    image = Image.new("RGB", (4, 2), "red")
    assert picture_key(image) == picture_key(image.convert("RGBA"))
    others = [Image.new("RGB", (2, 4), "red"), Image.new("RGB", (4, 2), "blue")]
    assert len({picture_key(image), *map(picture_key, others), prompt_key("red"), prompt_key("Red")}) == 5
