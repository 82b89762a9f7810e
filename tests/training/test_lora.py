"""A plain LoRA learns, and leaves everything else alone."""

import torch

from b4m_pipeline.training.lora import train_lora
from b4m_pipeline.training.params import LoraParams
from tests.conftest import PLAIN_TRAINING

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_embedding.linear_2"]


def lora(**changes) -> LoraParams:
    return LoraParams(
        **{"rank": 2, "alpha": 2, "targets": TARGETS, "steps": 30, "batch_size": 3, "learning_rate": 1e-2}
        | PLAIN_TRAINING
        | changes
    )


def test_plain_lora_learns_and_is_repeatable(tiny_training_set, tiny_base) -> None:
    def train(seed: int, steps: int = 3):
        return train_lora("cup", tiny_training_set, ["content"], tiny_base, lora(steps=steps, precision="no"), seed)

    (adapter, _), (again, _), (other, _), (_, history) = train(0), train(0), train(1), train(0, 100)
    assert all(torch.equal(tensor, again.tensors[key]) for key, tensor in adapter.tensors.items())
    assert any(not torch.equal(tensor, other.tensors[key]) for key, tensor in adapter.tensors.items())
    losses = [entry["loss_cup"] for entry in history]
    assert sum(losses[-30:]) < 0.95 * sum(losses[:30])


def test_global_randomness_is_left_alone(tiny_training_set, tiny_base) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    train_lora("cup", tiny_training_set, ["content"], tiny_base, lora(steps=1), 0)
    assert torch.equal(torch.rand(3), expected)
