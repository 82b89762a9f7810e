"""What Kedro-Viz shows of the catalog: every dataset in a layer, previews that can be called as the catalog says."""

import inspect

import pytest
from kedro.config import OmegaConfigLoader
from kedro.io import DataCatalog

from b4m_pipeline.pipeline_registry import register_pipelines
from b4m_pipeline.settings import CONFIG_LOADER_ARGS
from tests.test_startup import ROOT

LAYERS = ("intermediate", "primary", "model_input", "models", "model_output", "reporting")
CATALOG = DataCatalog.from_config(OmegaConfigLoader(str(ROOT / "conf"), env="local", **CONFIG_LOADER_ARGS)["catalog"])
NAMES = sorted(CATALOG.keys())


def shown(name: str) -> dict:
    """The part of a dataset's metadata that Kedro-Viz reads."""
    return CATALOG.get(name).metadata["kedro-viz"]


@pytest.mark.parametrize("name", NAMES)
def test_every_dataset_has_a_layer(name) -> None:
    assert shown(name)["layer"] in LAYERS


@pytest.mark.parametrize("name", [name for name in NAMES if "preview_args" in shown(name)])
def test_preview_takes_the_catalogs_arguments(name) -> None:
    inspect.signature(CATALOG.get(name).preview).bind(**shown(name)["preview_args"])


WITHOUT = {"merged_adapters", "benchmark_report", "benchmark_summary"}  # composed_sheets and the benchmark's sheets show these


def test_every_dataset_of_every_stage_has_a_preview() -> None:
    written = set().union(*(pipeline.all_outputs() for pipeline in register_pipelines().values())) & set(NAMES)
    assert {"contact_sheet", "input_sheet", "evaluation_summary", "content_break.loss_curve", "make_loss_curve"} <= written
    assert {name for name in written if not hasattr(CATALOG.get(name), "preview")} == WITHOUT


def test_what_nodes_hand_over_in_memory_is_what_the_docs_say() -> None:
    """Airflow's tasks: nodes that share what is in no file must run in one (docs/how-to/kedro.md)."""
    run = register_pipelines()["break_make"]
    memory = run.all_outputs() - set(NAMES)
    groups = [{node.name} for node in run.nodes]
    for name in memory:
        met = [
            group for group in groups if any(name in {*node.inputs, *node.outputs} and node.name in group for node in run.nodes)
        ]
        groups = [group for group in groups if group not in met] + [set().union(*met)]
    page = (ROOT / "docs/how-to/kedro.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in memory) and f"{len(groups)} tasks" in page
