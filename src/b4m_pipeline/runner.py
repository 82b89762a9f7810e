"""The runner of `kedro run` here."""

from collections.abc import Callable
from copy import copy
from functools import wraps
from typing import TYPE_CHECKING, Any

from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.runner import SequentialRunner
from pluggy import PluginManager

from b4m_pipeline.pipelines.break_template import BREAKS, stage_of

if TYPE_CHECKING:
    from b4m_pipeline.library.halves import Halves


class SideBySideRunner(SequentialRunner):
    """Kedro's SequentialRunner. Where content_break and style_break both run and training them at once is faster, their
    functions are called in processes of their own. All else stays here and in order: nodes, loading, saving, hooks. The weights
    are the same."""

    def __str__(self) -> str:
        """Kedro-Viz shows the state of a run whose runner's text says this."""
        return f"<{type(self).__module__}.{type(self).__name__}, a kedro.runner.sequential_runner.SequentialRunner object>"

    def _run(
        self, pipeline: Pipeline, catalog: DataCatalog, hook_manager: PluginManager | None = None, run_id: str | None = None
    ) -> None:
        breaks = [node for node in pipeline.nodes if node.name in BREAKS]
        before = {frozenset(pipeline.node_dependencies[node]) for node in breaks}
        if len(breaks) < len(BREAKS) or len(before) > 1:  # each must have its inputs when the first is run
            super()._run(pipeline, catalog, hook_manager, run_id)
            return
        both = _Both(breaks, catalog)
        nodes = [both.replaced(node) if node in breaks else node for node in pipeline.nodes]
        try:
            super()._run(Pipeline(nodes), catalog, hook_manager, run_id)
        finally:
            both.close()


class _Both:
    """Functions that stand in for the breaks': the first that is called sees to both halves, each returns its own."""

    def __init__(self, breaks: list[Node], catalog: DataCatalog):
        self._breaks, self._catalog = breaks, catalog
        self._halves: Halves | None = None

    def replaced(self, node: Node) -> Node:
        own = copy(node)
        own.func = self._function_of(node)
        return own

    def _function_of(self, node: Node) -> Callable[..., Any]:
        @wraps(node.func)
        def give_half(*inputs: Any) -> Any:
            if self._halves is None:
                self._halves = self._begin(node, inputs)
            return self._halves.result(node.namespace)

        return give_half

    def _begin(self, first: Node, inputs: tuple[Any, ...]) -> "Halves":
        from b4m_pipeline.library.halves import Halves

        given = {node: inputs if node is first else tuple(map(self._catalog.load, node.inputs)) for node in self._breaks}
        *_, checkpoints, reuse = inputs
        stages = {node.namespace: stage_of(*own[:-2], kind=BREAKS[node.name]) for node, own in given.items()}
        return Halves(stages, checkpoints, reuse)

    def close(self) -> None:
        if self._halves:
            self._halves.close()
