"""The halves of a pair: of the registry, trained at once where that is faster, or one after the other."""

import logging
from functools import partial

from b4m_pipeline.common.devices import threads_of_a_half
from b4m_pipeline.library.reuse import Outcome, reused, trained
from b4m_pipeline.library.workers import Workers
from b4m_pipeline.training.places import places_at_once
from b4m_pipeline.training.stages import BreakStage

logger = logging.getLogger(__name__)


class Halves:
    """stages: by name. checkpoints, reuse: as of `train_or_reuse`. Close it, whatever happens."""

    def __init__(self, stages: dict[str, BreakStage], checkpoints: str, reuse: bool):
        self._stages, self._checkpoints = dict(stages), checkpoints
        self._found = {name: found for name, stage in stages.items() if (found := reused(stage))} if reuse else {}
        self._workers: Workers[Outcome] | None = None
        rest = {name: stage for name, stage in stages.items() if name not in self._found}
        if len(rest) > 1 and (places := places_at_once(list(rest.values()))):
            threads = f" and {threads_of_a_half()} of the CPU's threads" if places[0].gpu is None else " and a GPU"
            logger.info("Both halves are trained at once, each with a process%s of its own", threads)
            functions = {name: partial(trained, stage, checkpoints) for name, stage in rest.items()}
            self._workers = Workers(functions, [place.gpu for place in places])

    def result(self, name: str) -> Outcome:
        """One half and its loss curve; each can be had once. Raises what training it, or another one beside it, raised."""
        stage = self._stages.pop(name)
        if name in self._found:
            return self._found.pop(name)
        if self._workers is None:
            return trained(stage, self._checkpoints)
        found = self._workers.result(name)
        if not self._stages:
            self.close()
        return found

    def close(self) -> None:
        """End what is still being trained; its checkpoint stays."""
        if self._workers:
            self._workers.close()
            self._workers = None
