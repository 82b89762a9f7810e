"""What is minimised, on which rows, for which parameters."""

import pytest
import torch

from b4m_pipeline.training.objectives import Objective, parameter_groups


def test_every_image_has_its_own_noise_and_batches_cover_all_rows():
    objective = Objective("x", [], [torch.arange(5), torch.arange(10, 13)], 4, 0.1)
    rows = torch.cat([objective.batch(0, index) for index in range(15)])
    first, second = rows[0::2], rows[1::2]
    assert sorted(first[:5].tolist()) == [0, 1, 2, 3, 4] and sorted(second[:3].tolist()) == [10, 11, 12]
    assert len(first) == len(second) == 30  # equal shares, whatever the strata's sizes
    assert first[:5].tolist() != first[5:10].tolist()


def test_a_parameter_of_several_objectives_needs_one_rate():
    shared, rows = torch.nn.Parameter(torch.zeros(2)), [torch.arange(2)]
    same = [Objective("a", [shared], rows, 2, 0.1), Objective("b", [shared], rows, 2, 0.1)]
    assert [(group["name"], len(group["params"])) for group in parameter_groups(same)] == [("a", 1)]
    with pytest.raises(ValueError, match="objective b shares parameters"):
        parameter_groups([same[0], Objective("b", [shared], rows, 2, 0.2)])
