"""What Kedro imports to start up, and that its commands know this project's pipelines."""

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

from b4m_pipeline.pipeline_registry import register_pipelines

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "diffusers", "transformers", "peft"}
DATASETS = [f"b4m_pipeline.datasets.{file.stem}" for file in (ROOT / "src/b4m_pipeline/datasets").glob("[a-z]*.py")]


STARTS = """
import sys
{imports}
from kedro.framework.cli import main
from b4m_pipeline.pipeline_registry import register_pipelines
register_pipelines()
sys.argv = ["kedro", "registry", "list"]
try:
    main()
finally:
    sys.stderr.write("IMPORTED " + " ".join({heavy} & set(sys.modules)))
"""


def test_kedro_starts_without_torch_and_knows_the_pipelines() -> None:
    modules = [
        "b4m_pipeline.settings",
        "b4m_pipeline.hooks",
        "b4m_pipeline.cli",
        "b4m_pipeline.runner",
        "b4m_pipeline.registry.tracking",
        *DATASETS,
    ]
    code = STARTS.format(imports=f"import {', '.join(modules)}", heavy=HEAVY)
    own = os.environ | {"PYTHONPATH": str(ROOT / "src"), "KEDRO_DISABLE_TELEMETRY": "1"}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, env=own)
    assert result.returncode == 0, result.stderr
    assert result.stderr.rsplit("IMPORTED ", 1)[1].split() == []
    for name in ("ingestion", "content_break", "style_break", "plp_reconstruction", "joint_make", "evaluation"):
        assert f"- {name}\n" in result.stdout
    assert "- pretrain\n" in result.stdout


def test_break_make_is_all_that_adapts_and_the_default() -> None:
    pipelines = register_pipelines()
    assert pipelines["__default__"].nodes == pipelines["break_make"].nodes
    names = {name: {node.name for node in pipeline.nodes} for name, pipeline in pipelines.items()}
    others = {"pretrain", "pretrain_further", "pretrain_report", "benchmark", "compose", "generate", "library"}
    parts = set(names) - others - {"break_make", "__default__"}
    assert names["break_make"] == set().union(*(names[part] for part in parts))
    assert not any(names["break_make"] & names[other] for other in others)


NODES = {node.name: node for pipeline in register_pipelines().values() for node in pipeline.nodes}


@pytest.mark.parametrize("name", NODES)
def test_kedro_can_read_a_nodes_types(name: str) -> None:
    """Kedro passes parameters on unvalidated, with a warning alone, where an annotation is missing or unresolvable."""
    function, inputs = NODES[name].func, NODES[name].inputs
    hints = get_type_hints(function)
    arguments = zip(inputs, inspect.signature(function).parameters, strict=False)
    assert all(argument in hints for dataset, argument in arguments if dataset.startswith("params:"))
