"""A pair's merges, measured beside its made adapter and its joined halves, as evaluation measures these."""

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import mlflow
import pandas as pd

from b4m_pipeline.common.sheets import Row, paint_grid
from b4m_pipeline.common.words import fill_prompt, words_of
from b4m_pipeline.diffusion.sampling import require_base
from b4m_pipeline.evaluation.samples import BASE, JOINED, MADE, SampleRequest, draw_samples, known_requests
from b4m_pipeline.evaluation.table import flat_metrics, measure, summarise
from b4m_pipeline.inputs.captions import plain_captions
from b4m_pipeline.inputs.folders import load_picture
from b4m_pipeline.inputs.prepare import own_pictures
from b4m_pipeline.library.compose import compose
from b4m_pipeline.library.params import ComposeParams
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.registry.adapters import fetch_adapter
from b4m_pipeline.registry.tracking import log_metrics, log_picture
from b4m_pipeline.studio.canvas import Canvas

logger = logging.getLogger(__name__)

WAYS = ("sum", "ties", "dare", "svd", "np")
Load = Callable[[str], Any]
"""A dataset of the project's catalog by its name."""


class MergesError(ValueError):
    """A pair that cannot be measured here and now."""


class Measurement:
    """At most one at a time; its result is a run of MLflow's, so that it stands among the other evaluations."""

    def __init__(self, canvas: Canvas, load: Load):
        self.canvas, self._load = canvas, load
        self.state, self.message, self.run = "none", "", ""

    def start(self, uri: str) -> None:
        """Measure the pair of the made adapter "models:/NAME/VERSION". Raises MergesError, RegistrationError,
        AdapterError or GenerationError."""
        if self.state == "running":
            raise MergesError("Merges are measured already: wait for these")
        made = fetch_adapter(uri)
        if len(parents := _parents(made)) != 2:
            raise MergesError(f"{uri} does not say which registered halves it was made of")
        require_base(made, self.canvas.base)
        references = self._references(made)
        self.state, self.message, self.run = "running", "", ""
        threading.Thread(target=self._work, args=(made, parents, references), daemon=True, name="merges").start()

    def about(self) -> dict[str, str]:
        return {"state": self.state, "message": self.message, "run": self.run}

    def _references(self, made: Adapter) -> tuple[pd.DataFrame, Any]:
        """The ingested pictures, if they are the pair's."""
        try:
            manifest, pictures = self._load("manifest"), self._load("pictures")
        except Exception as error:  # Kedro's datasets raise what their libraries raise
            raise MergesError(
                f"No pictures are ingested to compare with: run ingestion for this pair first ({error})"
            ) from error
        for kind in ("content", "style"):
            shown = set(own_pictures(manifest, kind)["concept"])
            if shown != {wanted := made.metadata[f"{kind}_name"]}:
                raise MergesError(
                    f"The pictures to compare with must be those of {made.metadata['name']}, and the ones ingested last are of "
                    f"{', '.join(sorted(shown)) or 'no ' + kind}, not {wanted}: run ingestion for this pair first"
                )
        return manifest, pictures

    def _work(self, made: Adapter, parents: list[str], references: tuple[pd.DataFrame, Any]) -> None:
        try:
            self.run = self.canvas.alone(lambda: self._measure(made, parents, *references))
            self.state = "done"
        except Exception as error:  # a thread of its own: whatever it meets is said on the page
            self.message = self.canvas.said(error)
            self.state = "failed"

    def _measure(self, made: Adapter, parents: list[str], manifest: pd.DataFrame, pictures: Any) -> str:
        p, canvas = self.canvas.parameters, self.canvas
        params = ComposeParams(content=parents[0], style=parents[1], methods=["halves", *WAYS], merge=p["compose"].merge)
        composed = compose(params, canvas.base_model, p["frame"].content_side, p["make"], p["seed"])[2]
        adapters = {BASE: None, JOINED: composed.pop("halves"), MADE: made} | composed
        things = plain_captions(own_pictures(manifest, "style"), p["captioning"])
        requests = self._requests(made.metadata, list(adapters)[1:], things)
        drawn = draw_samples(requests, adapters, canvas.base_model, p["evaluation"])
        shown = [
            [load_picture(pictures[key]) for key in own_pictures(manifest, kind)["picture"]] for kind in ("content", "style")
        ]
        samples = pd.DataFrame([request.row() for request in requests])
        summary = summarise(measure(samples, drawn, shown[0], shown[1], [], p["evaluation"], things), p["seed"])
        rows = [
            Row(system, [drawn[request.key] for request in requests if request.system == system], strong=system == MADE)
            for system in list(adapters)[1:]
        ]
        with mlflow.start_run(run_name=f"{made.metadata['name']} beside merges") as run:
            log_metrics(flat_metrics(summary))
            log_picture(paint_grid(rows, title=made.metadata["name"]), "composed")
        return run.info.run_id

    def _requests(self, about: dict[str, str], systems: list[str], things: list[str | None]) -> list[SampleRequest]:
        """Of evaluation's first prompt, its seeds for each system, and the drawings that its shares need."""
        params, seed = self.canvas.parameters["evaluation"], self.canvas.parameters["seed"]
        words = [{kind: about[f"{kind}_{what}"] for kind in ("content", "style")} for what in ("token", "name")]
        plain = {kind: words_of(name) for kind, name in words[1].items()}
        prompt, said = (fill_prompt(params.prompts[0], own, about["noun"]) for own in (words[0], plain))
        requests = known_requests(things, params.samples, seed)
        for system in systems:
            requests += [SampleRequest(prompt, seed + i, system, "composition", said) for i in range(params.samples)]
        return requests


def _parents(made: Adapter) -> list[str]:
    """The content's and the style's version that it was made of."""
    return json.loads(made.metadata.get("parents", "[]"))
