import pytest

from b4m_pipeline.training.schedules import warm_cosine, warm_up


def test_warm_up_is_linear_and_may_be_left_out() -> None:
    assert [warm_up(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert warm_up(0, 0) == 1


def test_cosine_falls_from_one_to_zero_over_all_steps() -> None:
    assert warm_cosine(0, 10, 0) == 1
    assert warm_cosine(5, 10, 0) == pytest.approx(0.5)
    assert warm_cosine(10, 10, 0) == pytest.approx(0)
    assert warm_cosine(0, 10, 2) == 0.5
