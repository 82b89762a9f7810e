"""Guard over make: a few drawings by the joined halves and by make's adapters are measured, and the adapter that keeps most of
both content and style is the result, even if that is the halves as they were joined."""

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
        params = self.evaluation.model_copy(update={"steps": max(1, self.evaluation.steps // 2)})
        about = candidates[0].metadata
        words = {"content": about["content_token"], "style": about["style_token"]}
        prompt = fill_prompt(params.prompts[0], words, about["noun"])
        first = derive_seed(self.seed, "guard") % 2**31  # not the seeds that evaluation draws with
        requests = known_requests(self.things, params.samples, first)
        systems: dict[str, Adapter | None] = {BASE: None}
        for step, adapter in candidates.items():
            systems[str(step)] = adapter
            requests += [SampleRequest(prompt, first + n, str(step), "composition", prompt) for n in range(params.samples)]
        pictures = draw_samples(requests, systems, self.base_model, params)
        samples = pd.DataFrame([request.row() for request in requests])
        table = measure(samples, pictures, self.content, self.style, [], params, self.things)
        means = table[table["kind"] == "composition"].groupby("system")[["kept", "content_kept", "style_kept"]].mean()
        figures = {step: means.loc[str(step)].round(4).to_dict() for step in candidates}
        return max(candidates, key=lambda step: (figures[step]["kept"], step)), figures
