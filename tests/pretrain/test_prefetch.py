"""What a training step sees, made here or by other processes."""

import torch

from b4m_pipeline.pretrain.prefetch import prefetch


def test_other_processes_give_the_same_lessons() -> None:
    def make(step: int) -> tuple[torch.Tensor, list[str]]:
        return torch.rand(3, generator=torch.Generator().manual_seed(step)), [f"step {step}"]

    here, elsewhere = (list(prefetch(make, 2, 9, device)) for device in ("cpu", "cuda"))
    assert [words for _, words in elsewhere] == [[f"step {step}"] for step in range(2, 9)]
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(here, elsewhere, strict=True))


def test_lessons_begin_where_a_training_goes_on() -> None:
    made = []
    own = prefetch(lambda step: made.append(step) or step, 3, 6, "cpu")
    assert made == []  # none ahead of the first that is wanted
    assert list(own) == [3, 4, 5] == made
    assert list(prefetch(lambda step: step, 6, 6, "cpu")) == []
