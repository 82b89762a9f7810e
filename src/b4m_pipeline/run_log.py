"""What a run says: a line before each stage, with what it is about to do, a line after it, with what came of it and where that
lies, and in the end the picture, the figure and the commands that come next.

A stage is a pipeline of the project. Its first node says the line before, its last one the line after; so it does not matter in
which thread or process a node runs. The plan is handed on to processes in the environment.
"""

import json
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from b4m_pipeline import run_words
from b4m_pipeline.common.progress import duration
from b4m_pipeline.inputs.training_set import TrainingSet
from b4m_pipeline.registry import addresses, runs, tracking

logger = logging.getLogger(__name__)

_PLAN = "B4M_STAGES"
_TOGETHER = ("__default__", "break_make")  # of other pipelines' nodes


def plan_of(pipeline: Pipeline, known: Mapping[str, Pipeline], parameters: dict[str, Any]) -> list[dict[str, str]]:
    """A run's stages in order: name (of the pipeline, as in `known`), first and last node, label and what is done."""
    names = {node.name: name for name, each in known.items() if name not in _TOGETHER for node in each.nodes}
    stages: dict[str, list[str]] = {}
    for node in pipeline.nodes:
        if node.name in names:
            stages.setdefault(names[node.name], []).append(node.name)
    found = []
    for place, name in enumerate(sorted(stages, key=list(known).index), start=1):
        label = run_words.LABELS.get(name, name)
        label = f"Stage {place} of {len(stages)}, {label}" if len(stages) > 1 else label.capitalize()
        doing = run_words.doing(name, parameters)
        found.append({"name": name, "first": stages[name][0], "last": stages[name][-1], "label": label, "doing": doing})
    return found


class RunLogHook:
    """Says the lines, and keeps each stage's seconds in MLflow as "seconds.STAGE"."""

    def __init__(self) -> None:
        self._begun: dict[str, float] = {}
        self._results: dict[str, tuple[DataCatalog, dict[str, Any]]] = {}
        self._unsaved: dict[str, set[str]] = {}

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        self._context = context

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline) -> None:
        """Plan the stages, and name MLflow's run by what it is about, unless mlflow.yml or whoever began it has named it."""
        self._parameters, self._run_id, self._inputs_logged = self._context.params, runs.current_run(), False
        os.environ[_PLAN] = json.dumps(plan_of(pipeline, dict(pipelines), self._parameters))
        names = run_params.get("pipeline_names") or ["__default__"]
        if self._run_id:
            about = run_words.subject(names, pipeline.inputs(), self._parameters)
            tracking.rename_run(self._run_id, "+".join(names), about)

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str, data: Any) -> None:
        self._log_inputs(dataset_name, data)

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        for stage in self._plan():
            if stage["first"] == node.name:
                self._begun[stage["name"]] = time.monotonic()
                left = run_words.seconds(stage["name"], getattr(self, "_parameters", {}))
                about = f", about {duration(left)}" if left else ""
                logger.info("%s: %s%s", stage["label"], stage["doing"], about)

    @hook_impl
    def after_node_run(self, node: Node, catalog: DataCatalog, outputs: dict[str, Any]) -> None:
        self._results[node.name], self._unsaved[node.name] = (catalog, outputs), set(outputs)
        if not outputs:
            self._end(node)

    @hook_impl(trylast=True)
    def after_dataset_saved(self, dataset_name: str, data: Any, node: Node) -> None:
        """An adapter's version is known when it is saved."""
        self._log_inputs(dataset_name, data)
        left = self._unsaved.get(node.name, set())
        left.discard(dataset_name)
        if not left and node.name in self._results:
            self._end(node)

    def _log_inputs(self, dataset_name: str, data: Any) -> None:
        """Name the pictures as the run's datasets, once."""
        if dataset_name in ("manifest", "training_set") and getattr(self, "_run_id", None) and not self._inputs_logged:
            self._inputs_logged = True
            table = data.table if isinstance(data, TrainingSet) else data
            tracking.log_inputs(self._run_id, table, run_words.folders(self._parameters))

    def _end(self, node: Node) -> None:
        catalog, outputs = self._results.pop(node.name)
        for stage in self._plan():
            if stage["last"] == node.name:
                begun = self._begun.pop(stage["name"], None)
                took = time.monotonic() - begun if begun else None
                told = run_words.done(stage["name"], outputs, catalog)
                logger.info("%s done%s%s", stage["label"], f" in {duration(took)}" if took else "", f": {told}" if told else "")
                if took:
                    tracking.log_metrics({f"seconds.{stage['name']}": took})

    @hook_impl(trylast=True)
    def after_pipeline_run(self, catalog: DataCatalog) -> None:
        names = [stage["name"] for stage in self._plan()]
        os.environ.pop(_PLAN, None)
        lines = run_words.ending(names, catalog, self._context.env) if names else []
        if self._run_id and names:
            lines += addresses.lines(self._run_id, self._context.mlflow.ui.host, self._context.mlflow.ui.port)
        for line in lines:
            logger.info("%s", line)

    @hook_impl
    def on_pipeline_error(self) -> None:
        os.environ.pop(_PLAN, None)

    def _plan(self) -> list[dict[str, str]]:
        return json.loads(os.environ.get(_PLAN, "[]"))
