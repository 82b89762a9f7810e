import json

import pandas as pd
import pytest

from b4m_pipeline.datasets.loss_curve import LossCurveDataset


def curve(steps: int) -> pd.DataFrame:
    return pd.DataFrame({"step": range(steps), "loss_content": [1.0, 0.0] * (steps // 2), "grad_norm_content": 1.0})


def test_preview_draws_the_losses_and_nothing_else(tmp_path):
    dataset = LossCurveDataset(filepath=str(tmp_path / "curve.csv"), save_args={"index": False})
    dataset.save(curve(200))
    figure = json.loads(json.dumps(dataset.preview()))
    (trace,) = figure["data"]
    assert trace["name"] == "content" and trace["x"] == list(range(200))
    assert trace["y"][0] == 1.0 and trace["y"][100:] == pytest.approx([0.5] * 100)  # mean of 10 steps
    assert "10 steps" in figure["layout"]["title"]["text"]
    assert dataset.load().equals(curve(200))


@pytest.mark.parametrize("steps", [2, 10_000])
def test_preview_of_short_and_long_trainings(tmp_path, steps):
    dataset = LossCurveDataset(filepath=str(tmp_path / "curve.csv"), save_args={"index": False})
    dataset.save(curve(steps))
    (trace,) = dataset.preview()["data"]
    assert len(trace["x"]) == len(trace["y"]) == min(steps, 400)


def test_kedro_viz_takes_the_preview_for_a_figure():
    assert LossCurveDataset.preview.__annotations__["return"].__name__ == "PlotlyPreview"
