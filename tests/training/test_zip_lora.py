"""ZipLoRA beyond the benchmark's plain LoRAs: layers and ranks that differ, and convolutions."""

import pytest
import torch

from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.inputs.training_set import TrainingSetError
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.merge import delta
from b4m_pipeline.training.params import MakeParams, ZipParams
from b4m_pipeline.training.zip_lora import zip_lora
from tests.training.helpers import MAKE


def lora(base, modules, rank: int, seed: int) -> Adapter:
    unet, tensors, generator = load_family(base).empty_denoiser(), {}, torch.Generator().manual_seed(seed)
    for module in modules:
        outputs, *inputs = unet.get_submodule(module).weight.shape
        tensors[f"{module}.lora_A.weight"] = torch.randn(rank, *inputs, generator=generator)
        tensors[f"{module}.lora_B.weight"] = 0.3 * torch.randn(outputs, rank, *[1] * (len(inputs) - 1), generator=generator)
    return Adapter(tensors, {}, {"r": rank, "lora_alpha": rank})


CONV, SHARED, OTHER = "down_blocks.0.resnets.0.conv1", "add_embedding.linear_1", "add_embedding.linear_2"


def test_shared_layers_are_zipped_and_the_union_is_kept(tiny_training_set, tiny_base) -> None:
    content, style = lora(tiny_base, [CONV, SHARED], 2, 1), lora(tiny_base, [SHARED, OTHER], 3, 2)
    params = ZipParams(steps=6, learning_rate=0.05)
    merged = zip_lora(content, style, tiny_training_set, tiny_base, MakeParams(**MAKE), params, 0)
    assert merged.modules() == sorted([CONV, SHARED, OTHER]) and merged.rank == 5
    assert merged.tensors[f"{CONV}.lora_A.weight"].shape[1:] == content.tensors[f"{CONV}.lora_A.weight"].shape[1:]
    plain = delta(content, SHARED) + delta(style, SHARED)
    assert torch.allclose(delta(merged, SHARED), plain, atol=1) and not torch.allclose(delta(merged, SHARED), plain, atol=1e-3)
    assert torch.nn.functional.cosine_similarity(delta(merged, CONV), delta(content, CONV)).mean() > 0.95


def test_it_needs_pictures_of_both(tiny_training_set, tiny_base) -> None:
    both = lora(tiny_base, [SHARED], 2, 1)
    with pytest.raises(TrainingSetError, match="style"):
        zip_lora(both, both, tiny_training_set.without("style"), tiny_base, MakeParams(**MAKE), ZipParams(), 0)
