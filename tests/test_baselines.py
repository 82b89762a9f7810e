"""What the method is compared with."""

import torch

from b4m_pipeline.adapters import save_adapter
from b4m_pipeline.baselines import train_lora
from b4m_pipeline.config import LoraParams, TrainParams

LORA = LoraParams(rank=2, alpha=2, targets=["to_q", "to_k", "to_v", "to_out.0", "add_embedding.linear_2"])


def train(data, base, roles=("content",), steps=30, seed=0):
    params = TrainParams(steps=steps, batch_size=3, learning_rate=1e-2, precision="no")
    return train_lora("cup", data, list(roles), base, LORA, params, seed)


def test_plain_lora_learns_and_is_repeatable(tiny_training_set, tiny_base) -> None:
    adapter, history = train(tiny_training_set, tiny_base, steps=240)
    again, _ = train(tiny_training_set, tiny_base, steps=240)
    assert all(torch.equal(tensor, again.tensors[key]) for key, tensor in adapter.tensors.items())
    other, _ = train(tiny_training_set, tiny_base, seed=1)
    assert any(not torch.equal(tensor, other.tensors[key]) for key, tensor in adapter.tensors.items())
    losses = [entry["loss_cup"] for entry in history]
    assert sum(losses[-80:]) < 0.95 * sum(losses[:80])
    assert all(adapter.delta(module).abs().max() > 0 for module in adapter.modules())


def test_joint_training_takes_its_pictures_from_both_roles(tiny_training_set, tiny_base) -> None:
    joint, _ = train(tiny_training_set, tiny_base, ("content", "style"), steps=2)
    assert joint.metadata["data_digest"] == tiny_training_set.digest("content", "style")


def test_global_randomness_is_left_alone(tiny_training_set, tiny_base) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    train(tiny_training_set, tiny_base, steps=1)
    assert torch.equal(torch.rand(3), expected)


def test_a_stock_pipeline_loads_it(tiny_training_set, tiny_base, tiny_sdxl, tmp_path) -> None:
    from diffusers import StableDiffusionXLPipeline

    adapter, _ = train(tiny_training_set, tiny_base, steps=2)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, use_safetensors=True)
    pipeline.load_lora_weights(save_adapter(adapter, tmp_path).parent)
    (name,) = pipeline.get_active_adapters()
    module = pipeline.unet.get_submodule(adapter.modules()[0])
    weight = module.scaling[name] * module.lora_B[name].weight @ module.lora_A[name].weight
    assert torch.allclose(weight, adapter.delta(adapter.modules()[0]), atol=1e-7)
