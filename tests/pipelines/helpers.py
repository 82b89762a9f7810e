"""A pipeline by itself, with all of its data in memory."""

from typing import Any

from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline
from kedro.runner import SequentialRunner


class Kept(MemoryDataset):
    """What a runner does not throw away when nobody needs it any more."""

    def _release(self) -> None:
        pass


def run(pipeline: Pipeline, **data: Any) -> DataCatalog:
    """Run it on `data`, of which "params_x" is params:x; gives the catalog, which has what the pipeline made, too."""
    given = {name.replace("params_", "params:", 1) if name.startswith("params_") else name: own for name, own in data.items()}
    made = {name: Kept(copy_mode="assign") for name in pipeline.all_outputs()}
    catalog = DataCatalog({name: Kept(own, copy_mode="assign") for name, own in given.items()} | made)
    SequentialRunner().run(pipeline, catalog)
    return catalog
