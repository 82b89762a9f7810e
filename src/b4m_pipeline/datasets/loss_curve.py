"""The loss curve of a training: a table that Kedro-Viz shows as curves."""

from kedro_datasets._typing import PlotlyPreview
from kedro_datasets.pandas import CSVDataset

_POINTS = 400  # of a curve in the preview, at most
_SHARE = 20  # the running mean is over a twentieth of the training


class LossCurveDataset(CSVDataset):
    """pandas.CSVDataset with the columns step, loss_... and others; its preview is a figure of the losses."""

    def preview(self) -> PlotlyPreview:
        """Running means of the columns that start with loss_, over the optimizer steps: a single step's loss says little, as it
        depends on the timesteps that were drawn."""
        table = self.load()
        window, stride = max(1, len(table) // _SHARE), max(1, -(-len(table) // _POINTS))
        traces = []
        for name in [column for column in table if column.startswith("loss_")]:
            means = table[name].rolling(window, min_periods=1).mean()
            points = {"x": table["step"][::stride].tolist(), "y": means[::stride].round(5).tolist()}
            traces.append(points | {"type": "scatter", "mode": "lines", "name": name.removeprefix("loss_").replace("_", " ")})
        layout = {
            "title": {"text": f"Loss, running mean of {window} steps"},
            "xaxis": {"title": {"text": "optimizer step"}},
            "yaxis": {"title": {"text": "loss"}},
        }
        return PlotlyPreview({"data": traces, "layout": layout})
