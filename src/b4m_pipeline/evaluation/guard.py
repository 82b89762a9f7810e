"""Guard over make: a few drawings by the joined halves and by make's adapters are measured, and the adapter that keeps most of
both content and style is the result, even if that is the halves as they were joined. By the same measure it says which of
several rehearsals is better."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from PIL import Image

from b4m_pipeline.common.provenance import digest_of
from b4m_pipeline.common.seeding import derive_seed
from b4m_pipeline.common.words import fill_prompt
from b4m_pipeline.diffusion.families import weights_digest
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.evaluation.samples import BASE, SampleRequest, draw_samples, known_requests
from b4m_pipeline.evaluation.table import measure
from b4m_pipeline.method.adapter import Adapter

logger = logging.getLogger(__name__)


@dataclass
class MakeGuard:
    """content, style: pictures to compare with; things: what each of the style's shows, as in `table.measure`. Of evaluation's
    parameters it draws the first prompt alone, in half of the denoising steps: a lost style shows in these, too."""

    base_model: BaseModelParams
    evaluation: EvaluationParams
    content: list[Image.Image] = field(repr=False)
    style: list[Image.Image] = field(repr=False)
    things: Sequence[str | None]
    seed: int

    @property
    def settings(self) -> dict[str, str]:
        """What its choice follows from besides the pictures, as part of make's recipe."""
        e = self.evaluation
        asked = e.prompts[0], e.samples, e.steps, e.guidance_scale
        own = digest_of(*asked, e.clip and weights_digest(e.clip), list(self.things))
        return {"guard": own}

    def choose(self, candidates: Mapping[int, Adapter]) -> tuple[int, dict[int, dict[str, float]]]:
        """The step whose adapter keeps most, the latest of several, and for each step the means of `kept`, `content_kept` and
        `style_kept`. candidates: adapters by steps of make, the joined halves as 0."""
        params, about = self._params(), candidates[0].metadata
        words = {"content": about["content_token"], "style": about["style_token"]}
        prompt = fill_prompt(params.prompts[0], words, about["noun"])
        requests = self._known()
        systems: dict[str, Adapter | None] = {BASE: None}
        for step, adapter in candidates.items():
            systems[str(step)] = adapter
            seeds = [self._first_seed() + index for index in range(params.samples)]
            requests += [SampleRequest(prompt, seed, str(step), "composition", prompt) for seed in seeds]
        measured = self._measure(requests, draw_samples(requests, systems, self.base_model, params))
        figures = {step: measured[str(step)] for step in candidates}
        return max(candidates, key=lambda step: (figures[step]["kept"], step)), figures

    def prefer(self, sets: Mapping[str, Sequence[Image.Image]]) -> str:
        """The name of the set of RGB drawings of the content in the style that keeps most of content and style together, the
        first of equals. Not by the lower of both: make evens out what it trains on, so a little less of one may be worth much
        more of the other."""
        known = self._known()
        drawn = draw_samples(known, {BASE: None}, self.base_model, self._params())
        given = {
            SampleRequest(name, n, name, "composition", name): image for name in sets for n, image in enumerate(sets[name])
        }
        figures = self._measure([*known, *given], drawn | {request.key: image for request, image in given.items()})
        for name in sets:
            logger.debug("%s: %s", name, ", ".join(f"{measure} {value:.2f}" for measure, value in figures[name].items()))
        return max(sets, key=lambda name: figures[name]["content_kept"] + figures[name]["style_kept"])

    def _measure(self, requests: list[SampleRequest], drawn: dict[str, Image.Image]) -> dict[str, dict[str, float]]:
        """The means of each system's drawings."""
        samples = pd.DataFrame([request.row() for request in requests])
        table = measure(samples, drawn, self.content, self.style, [], self._params(), self.things)
        means = table[table["kind"] == "composition"].groupby("system")[["kept", "content_kept", "style_kept"]].mean()
        return {str(system): row.round(4).to_dict() for system, row in means.iterrows()}

    def _known(self) -> list[SampleRequest]:
        return known_requests(self.things, self.evaluation.samples, self._first_seed())

    def _params(self) -> EvaluationParams:
        return self.evaluation.model_copy(update={"steps": max(1, self.evaluation.steps // 2)})

    def _first_seed(self) -> int:
        """Its drawings' seeds are not those that evaluation draws with."""
        return derive_seed(self.seed, "guard") % 2**31
