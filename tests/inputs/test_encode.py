"""Pictures and captions encoded by the tiny random SDXL."""

import pandas as pd
import pytest
import torch
from PIL import Image

from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.inputs.encode import encode_masks, encode_training_set
from b4m_pipeline.inputs.training_set import TrainingSetError


def test_a_token_that_the_text_encoder_would_not_read_is_an_error(tiny_manifest, tiny_base, caplog):
    manifest, pictures = tiny_manifest
    long = manifest.assign(caption=[f"a {token} " + "toy " * 30 for token in manifest.token])
    encode_training_set(long, pictures, tiny_base)
    assert "is not read, it is too long" in caplog.text
    late = manifest.assign(caption=["toy " * 30 + f"in {token} style" for token in manifest.token])
    with pytest.raises(TrainingSetError, match="content/cup/0: the text encoder reads 24 tokens, and 'snq' comes after"):
        encode_training_set(late, pictures, tiny_base)


def test_each_row_has_its_own_picture_and_caption(tiny_manifest, tiny_base):
    manifest, pictures = tiny_manifest
    again = manifest.loc[[0]].assign(caption="a snq toy, once more")  # a picture twice, captions that come several times
    data = encode_training_set(pd.concat([manifest, again]), pictures, tiny_base, ["a hat", "a cat"])
    family, table = load_family(tiny_base), data.table
    assert table.index.tolist() == list(range(len(manifest) + 1)) and len(data.tensors["latents_mean"]) == len(table)
    assert torch.equal(data.tensors["latents_mean"][0], data.tensors["latents_mean"][-1])
    assert table["pixels"][0] == table["pixels"].iloc[-1] and table["pixels"].nunique() == len(manifest)
    for row in (0, 4, len(table) - 1):
        ((mean, deviation),) = family.encode_pictures([pictures[table["picture"][row]]])
        assert torch.allclose(data.tensors["latents_mean"][row], mean, atol=1e-5)
        assert torch.allclose(data.tensors["latents_std"][row], deviation, atol=1e-5)
        (embeds,) = family.encode_prompts([table["caption"][row]])["prompt_embeds"]
        assert torch.allclose(data.tensors["prompt_embeds"][row], embeds, atol=1e-5)
    (hat, _) = family.encode_prompts(["a hat", "a cat"])["prompt_embeds"]
    assert data.others == ["a hat", "a cat"] and torch.allclose(data.other_tensors["prompt_embeds"][0], hat, atol=1e-5)
    assert "latents_size" not in data.tensors and "mask" not in data.tensors


def test_pictures_are_loaded_when_they_are_wanted(tiny_manifest, tiny_training_set, tiny_base):
    manifest, pictures = tiny_manifest
    lazy = encode_training_set(manifest, {key: lambda key=key: pictures[key] for key in pictures}, tiny_base)
    assert lazy.digest("content") == tiny_training_set.digest("content")


def test_masks_are_alpha_at_the_latents_size_and_nothing_beyond_it():
    half = Image.new("RGBA", (32, 16), (9, 9, 9, 255))
    half.paste((0, 0, 0, 0), (0, 0, 16, 16))
    masks = encode_masks([half, Image.new("RGB", (16, 16))], [(8, 16), (8, 8)])
    assert masks.shape == (2, 1, 8, 16)
    assert masks[0, 0, :, :8].max() == 0 and masks[0, 0, :, 8:].min() == 1
    assert masks[1, 0, :, :8].min() == 1 and masks[1, 0, :, 8:].max() == 0
    soft = encode_masks([Image.new("RGBA", (16, 16), (0, 0, 0, 51))], [(2, 2)])
    assert soft.flatten().tolist() == pytest.approx([0.2] * 4)
    assert encode_masks([Image.new("RGB", (16, 16))], [(8, 8)]) is None


def test_pictures_of_several_sizes_are_padded_and_their_sizes_kept(tiny_manifest, tiny_base):
    manifest, pictures = tiny_manifest
    wide = {manifest.picture[1]: pictures[manifest.picture[1]].resize((48, 16))}
    data = encode_training_set(manifest.loc[:2], pictures | wide, tiny_base)
    assert data.tensors["latents_size"].tolist() == [[16, 16], [8, 24], [16, 16]]
    assert data.tensors["latents_mean"].shape[-2:] == (16, 24)
    assert (
        data.tensors["latents_mean"][1, :, 8:].abs().max() == 0 and data.tensors["latents_mean"][0, :, :, 16:].abs().max() == 0
    )
