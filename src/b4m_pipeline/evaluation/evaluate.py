"""Every stage's pictures side by side, and figures of them: what the user judges the method by.

The adapters are drawn with by a stock diffusers pipeline from files, as whoever fetches them from the registry will.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from PIL import Image

from b4m_pipeline.common.words import fill_prompt, words_of
from b4m_pipeline.diffusion.families import base_model_id
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.evaluation.samples import BASE, CONTENT, JOINED, MADE, STYLE, SampleRequest, draw_samples, known_requests
from b4m_pipeline.inputs.folders import EXTENSIONS
from b4m_pipeline.inputs.squares import UnusablePictureError, read_square
from b4m_pipeline.method.adapter import URI_KEY, Adapter
from b4m_pipeline.method.frame import frame_of

logger = logging.getLogger(__name__)


class EvaluationError(ValueError):
    """Adapters, references and parameters that do not belong together."""


def plan(params: EvaluationParams, made: Adapter, things: Sequence[str | None], seed: int) -> list[SampleRequest]:
    """All pictures of an evaluation. Joined and made adapter draw every prompt with the same seeds. The base model is asked in
    plain words, as it does not know the tokens, and draws the things that the style's pictures show."""
    about = made.metadata
    tokens = {"content": about["content_token"], "style": about["style_token"]}
    names = {kind: words_of(about[f"{kind}_name"]) for kind in ("content", "style")}
    requests = known_requests(things, params.samples, seed)
    asked = [(CONTENT, "content", params.content_prompt), (STYLE, "style", params.style_prompt)]
    for index, template in enumerate(params.prompts):
        kind = "recontext" if index == 1 else f"recontext_{index}" if index else "composition"
        asked += [(system, kind, template) for system in ((JOINED, MADE) if index else (BASE, JOINED, MADE))]
    for system, kind, template in asked:
        noun = about["style_noun"] if system == STYLE else about["noun"]
        plain = fill_prompt(template, names, noun)
        prompt = plain if system == BASE else fill_prompt(template, tokens, noun)
        requests += [SampleRequest(prompt, seed + index, system, kind, plain) for index in range(params.samples)]
    return requests


def evaluate(
    content: Adapter,
    style: Adapter,
    reconstructed: Adapter,
    made: Adapter,
    base_model: BaseModelParams,
    params: EvaluationParams,
    things: Sequence[str | None],
    seed: int,
) -> tuple[dict[str, Image.Image], pd.DataFrame]:
    """Draw with the base model, each half alone, the halves joined before the make stage, and the made adapter.

    things: what each of the style's pictures shows, as prompts in plain words (None: not known). Returns the pictures by key
    and a table of them: picture (the key), system, kind, prompt, plain, seed. Raises EvaluationError if the adapters are not of
    one lineage.
    """
    about = made.metadata
    if (own := frame_of(made).base_model) != (given := base_model_id(base_model)):
        raise EvaluationError(f"the adapters are of the base model {own}, this run's is {given}: train them anew")
    parents = json.loads(about["parents"])
    for half in (content, style):
        if parents and (version := half.metadata.get(URI_KEY)) and version not in parents:
            logger.warning(
                "%s was made of %s, the %s half at hand is %s: its row shows the newer one, until plp_reconstruction and "
                "joint_make have run again", about["name"], " and ".join(parents), half.metadata["kind"], version
            )  # fmt: skip
    for adapter, expected in ((content, about["content_name"]), (style, about["style_name"]), (reconstructed, about["name"])):
        if adapter.metadata["name"] != expected or adapter.metadata["frame"] != about["frame"]:
            raise EvaluationError(
                f"the {adapter.metadata['kind']} adapter is {adapter.metadata['name']!r} of the frame "
                f"{adapter.metadata['frame']}, the made one was made of {expected!r} of {about['frame']}: "
                "run break_make again, or the stages from the one that changed"
            )
    requests = plan(params, made, things, seed)
    adapters = {BASE: None, CONTENT: content, STYLE: style, JOINED: reconstructed, MADE: made}
    pictures = draw_samples(requests, adapters, base_model, params)
    table = pd.DataFrame([request.row() for request in requests])
    return pictures, table


def find_truth(params: EvaluationParams, content: str, style: str, resolution: int) -> list[Image.Image]:
    """The true drawings of this content in this style, squares of `resolution` pixels on white; [] where none are known."""
    if not params.truth_path:
        return []
    folder = Path(params.truth_path.format(content=content, style=style)).expanduser()
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in EXTENSIONS) if folder.is_dir() else []
    if not files:
        logger.info("No true drawing of %s-%s is known (%s): its measures are left out", content, style, folder)
    try:
        return [read_square(file, resolution, (255, 255, 255), "center", 10**9).image for file in files]
    except UnusablePictureError as error:
        raise EvaluationError(f"evaluation.truth_path: a picture in {folder} cannot be used: {error}") from error
