"""Every stage's pictures side by side, and figures of them: what the user judges the method by.

The adapters are drawn with by a stock diffusers pipeline from files, as whoever fetches them from the registry will.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.common.seeding import numpy_generator
from b4m_pipeline.common.words import file_words, fill_prompt, words_of
from b4m_pipeline.diffusion.families import base_model_id, load_family
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.diffusion.sampling import ImageRequest, draw, put_on, settings_of
from b4m_pipeline.evaluation.judges import ClipJudge, EfficientNetJudge
from b4m_pipeline.evaluation.measures import Judgement, harmonic_mean, perceptual_distance, similarity
from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.inputs.folders import EXTENSIONS
from b4m_pipeline.inputs.squares import UnusablePictureError, read_square
from b4m_pipeline.method.adapter import URI_KEY, Adapter
from b4m_pipeline.method.frame import frame_of

logger = logging.getLogger(__name__)

BASE, CONTENT, STYLE, JOINED, MADE = "base", "content alone", "style alone", "halves joined", "made"
MEASURES = ("content", "style", "s_harm", "content_clip", "style_clip", "s_harm_clip", "prompt_clip", "truth", "truth_distance")


class EvaluationError(ValueError):
    """Adapters, references and parameters that do not belong together."""


@dataclass(frozen=True)
class SampleRequest(ImageRequest):
    """An image of an evaluation. system: what draws it; kind: content, style, composition (the first prompt), recontext,
    recontext_2, ... (further ones); plain: the prompt in plain words, for a CLIP model, which knows no new words."""

    system: str
    kind: str
    plain: str

    @property
    def key(self) -> str:
        """File name without its ending."""
        return f"{self.system.replace(' ', '-')}/{self.kind}-{file_words(self.prompt)}-{self.seed}"

    def row(self) -> dict[str, str | int]:
        """Of the table of samples."""
        return {"picture": self.key, **asdict(self)}


def plan(params: EvaluationParams, made: Adapter, seed: int) -> list[SampleRequest]:
    """All pictures of an evaluation. Every system but the halves alone draws every prompt with the same seeds; the base model
    is asked in plain words, as it does not know the tokens."""
    about = made.metadata
    tokens = {"content": about["content_token"], "style": about["style_token"]}
    names = {kind: words_of(about[f"{kind}_name"]) for kind in ("content", "style")}
    requests = []
    asked = [(CONTENT, "content", params.content_prompt), (STYLE, "style", params.style_prompt)]
    for index, template in enumerate(params.prompts):
        kind = "recontext" if index == 1 else f"recontext_{index}" if index else "composition"
        asked += [(system, kind, template) for system in (BASE, JOINED, MADE)]
    for system, kind, template in asked:
        noun = about["style_noun"] if system == STYLE else about["noun"]
        plain = fill_prompt(template, names, noun)
        prompt = plain if system == BASE else fill_prompt(template, tokens, noun)
        requests += [SampleRequest(prompt, seed + index, system, kind, plain) for index in range(params.samples)]
    return requests


def draw_samples(
    requests: list[SampleRequest], adapters: Mapping[str, Adapter | None], base_model: BaseModelParams, params: EvaluationParams
) -> dict[str, Image.Image]:
    """Draw every request with its system's adapter (None: the base model alone) -> RGB images by the requests' keys.

    An image is what `pipeline(prompt, num_inference_steps=steps, guidance_scale=guidance_scale,
    generator=torch.Generator().manual_seed(seed))` gives, to rounding: its noise depends on its seed alone.
    """
    pipeline = load_family(base_model).load_pipeline(pick_device(params.device))
    images = {}
    with tqdm(total=len(requests), desc="drawing", mininterval=1.0) as bar:
        for system, adapter in adapters.items():
            pipeline.unload_lora_weights()
            if adapter is not None:
                put_on(pipeline, adapter)
            own = [request for request in requests if request.system == system]
            for request, image in draw(pipeline, own, **settings_of(params, base_model.resolution)):
                images[request.key] = image
                bar.update()
    return images


def evaluate(
    content: Adapter,
    style: Adapter,
    reconstructed: Adapter,
    made: Adapter,
    base_model: BaseModelParams,
    params: EvaluationParams,
    seed: int,
) -> tuple[dict[str, Image.Image], pd.DataFrame]:
    """Draw with the base model, each half alone, the halves joined before the make stage, and the made adapter.

    Returns the pictures by key and a table of them: picture (the key), system, kind, prompt, plain, seed. Raises
    EvaluationError if the adapters are not of one lineage.
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
    requests = plan(params, made, seed)
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


def measure(
    samples: pd.DataFrame,
    pictures: dict[str, Image.Image],
    content_references: list[Image.Image],
    style_references: list[Image.Image],
    truth: list[Image.Image],
    params: EvaluationParams,
) -> pd.DataFrame:
    """Add what is measured to the table of pictures, a column each; NaN where a measure has no sense.

    content, style: mean cosine to the references by EfficientNet; s_harm: their harmonic mean; the same by CLIP with the
    suffix _clip; prompt_clip: cosine of picture and plain prompt; truth, truth_distance: to the true drawing, for the
    composition alone. The halves alone have no s_harm.
    """
    device, images = pick_device(params.device), [pictures[key] for key in samples["picture"]]
    table = samples.copy()
    both = ~samples["kind"].isin(["content", "style"]).to_numpy()
    judges = [EfficientNetJudge(device)] + ([ClipJudge(params.clip, device)] if params.clip else [])
    for judge in judges:
        suffix = "" if judge.name == "efficientnet" else f"_{judge.name}"
        needs_maps = bool(truth) and not suffix
        seen: Judgement = judge.look(images, maps=needs_maps)
        near_content = similarity(seen.content, judge.look(content_references).content)
        near_style = similarity(seen.style, judge.look(style_references).style)
        table[f"content{suffix}"], table[f"style{suffix}"] = near_content.numpy(), near_style.numpy()
        table[f"s_harm{suffix}"] = np.where(both, harmonic_mean(near_content, near_style).numpy(), np.nan)
        if isinstance(judge, ClipJudge):
            table["prompt_clip"] = (seen.content * judge.read(samples["plain"].tolist())).sum(1).numpy()
        if needs_maps:
            true = judge.look(truth, maps=True)
            composed = (samples["kind"] == "composition").to_numpy()
            table["truth"] = np.where(composed, similarity(seen.content, true.content).numpy(), np.nan)
            table["truth_distance"] = np.where(composed, perceptual_distance(seen, true).numpy(), np.nan)
    return table


def summarise(measured: pd.DataFrame, seed: int, draws: int = 2000) -> pd.DataFrame:
    """Means over the seeds with 95 % bootstrap intervals: system, kind, measure, mean, low, high, pictures."""
    rows = []
    for (system, kind), group in measured.groupby(["system", "kind"], sort=False):
        for name in [name for name in MEASURES if name in group]:
            values = group[name].dropna().to_numpy()
            if len(values):
                rng = numpy_generator(seed, "bootstrap", system, kind, name)
                means = values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
                low, high = np.percentile(means, [2.5, 97.5])
                rows.append((system, kind, name, values.mean(), low, high, len(values)))
    return pd.DataFrame(rows, columns=["system", "kind", "measure", "mean", "low", "high", "pictures"])


def flat_metrics(summary: pd.DataFrame) -> dict[str, float]:
    """The summary's means under names that MLflow takes: "evaluation.made.composition.s_harm"."""
    return {
        f"evaluation.{row.system.replace(' ', '_')}.{row.kind}.{row.measure}": float(row.mean) for row in summary.itertuples()
    }
