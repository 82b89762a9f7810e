"""What a training step sees, made here or by other processes."""

import torch

from b4m_pipeline.pretrain.lessons import lessons


def test_other_processes_give_the_same_lessons() -> None:
    def make(step: int) -> tuple[torch.Tensor, list[str]]:
        return torch.rand(3, generator=torch.Generator().manual_seed(step)), [f"step {step}"]

    here, elsewhere = (list(lessons(make, 2, 9, device)) for device in ("cpu", "cuda"))
    assert [words for _, words in elsewhere] == [[f"step {step}"] for step in range(2, 9)]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(here, elsewhere, strict=True))
