"""What a registered version says about itself, in Markdown: its description in the registry.

Pure functions of an adapter's metadata and of figures. MLflow keeps at most 5000 characters of a description.
"""

import json
import math
import re
from typing import Any

from b4m_pipeline.method.adapter import BASE_DETAILS, KEPT_FIGURES, KEPT_STEP, PIPELINE_KEY, example_prompt

MAX_CHARACTERS = 5000
EVALUATION = "## Evaluation"
NEWEST = "## Newest evaluation"
_DIGESTS = 8  # a role's pictures whose digests are listed; all are in the weights' file
_SHOWN = (
    "method", "content_weight", "style_weight", "density", "np_strength", "overlap_weight",
    "steps", "batch_size", "learning_rate", "counterpart_learning_rate", "schedule", "optimizer", "noisy_bias",
    "preservation_weight", "rank", "alpha", "split", "init", "halves", "targets", "seed",
)  # fmt: skip


def model_card(about: dict[str, str], uri: str, inference: dict[str, Any] | None = None) -> str:
    """The card of an adapter with the metadata `about`, at most MAX_CHARACTERS long. uri: its version, "models:/NAME/VERSION";
    inference: the logged model's defaults of num_inference_steps and guidance_scale, shown in the example."""
    card = _card(about, uri, inference or {}, _DIGESTS)
    if len(card) > MAX_CHARACTERS:
        card = _card(about, uri, inference or {}, 0)
    return card if len(card) <= MAX_CHARACTERS else card[: MAX_CHARACTERS - 2].rstrip() + "\n…"


def about_model(about: dict[str, str]) -> str:
    """What a registered model says about itself, whatever its version."""
    return "\n".join([f"# {about['name']}", "", summary(about), "", f"Prompt: `{example_prompt(about) or '...'}`", ""])


def with_pictures(description: str, version: str, kept: float | None, pictures: dict[str, str]) -> str:
    """A registered model's description with its section on the newest evaluation written anew, and all else as it is. kept: see
    `evaluation.measure`; pictures: addresses by what they show."""
    told = f"Version {version}" + ("" if kept is None else f" keeps {kept:.2f} of both content and style") + "."
    return _with_section(description, NEWEST, [told, *_images(pictures)])


def _images(pictures: dict[str, str]) -> list[str]:
    return [line for shown, address in pictures.items() for line in ("", f"![{shown}]({address})")]


def _with_section(card: str, heading: str, lines: list[str]) -> str:
    before, _, after = card.partition(heading)
    following = re.search(r"^## ", after, re.MULTILINE)
    parts = [before.rstrip(), "\n".join([heading, "", *lines]), after[following.start() :].rstrip() if following else ""]
    return "\n\n".join(part for part in parts if part) + "\n"


def with_evaluation(
    card: str, metrics: dict[str, float], sheet: str | None = None, pictures: dict[str, str] | None = None
) -> str:
    """The card with its section on evaluation written anew, and all else, which people may have edited, as it is.

    metrics: as `evaluation.flat_metrics` names them, "evaluation.SYSTEM.KIND.MEASURE"; a row for each system and kind, a column
    for each measure. sheet: where the contact sheet is; pictures: addresses by what they show.
    """
    cells: dict[tuple[str, str], dict[str, float]] = {}
    for key, value in metrics.items():
        _, system, kind, measure = key.split(".", 3)
        cells.setdefault((system.replace("_", " "), kind), {})[measure] = value
    measures = list(dict.fromkeys(measure for row in cells.values() for measure in row))
    rows = [[f"{system}, {kind}", *(_figure(row.get(name)) for name in measures)] for (system, kind), row in cells.items()]
    section = [*_table(["system, prompt", *measures], rows), *_images(pictures or {})]
    section += ["", f"Contact sheet: `{sheet}`"] if sheet else []
    return _with_section(card, EVALUATION, section)


def _card(about: dict[str, str], uri: str, inference: dict[str, Any], digests: int) -> str:
    recipe = json.loads(about["params"])
    parts = (recipe.get(part, {}) for part in ("frame", "train", "merge"))
    settings = {key: value for part in parts for key, value in part.items()} | {"seed": recipe.get("seed")}
    shown = [[key, _value(settings[key])] for key in _SHOWN if settings.get(key) is not None]
    resolution = about.get("resolution")
    size = f", {resolution} x {resolution} pixels" if resolution else ""
    further = "".join(f", {key} `{about[f'base_{key}']}`" for key in BASE_DETAILS if f"base_{key}" in about)
    weights, merged = json.loads(about["frame_config"]).get("base_model", ""), about["kind"] == "merged"
    lines = [
        f"# {about['name']}",
        "",
        summary(about),
        "",
        f"- Base model: `{weights or about['base_model']}`{further}{size}",
        *([] if merged else [f"- Frame: `{about['frame']}` (adapters of one frame can be recombined)"]),
        f"- Code: b4m_pipeline {about['code_version']}",
    ]
    if KEPT_STEP in about:
        step, seen = about[KEPT_STEP], json.loads(about[KEPT_FIGURES])
        told = "; ".join(f"{_stage(at)} {own['kept']:.2f}" for at, own in seen.items())
        lines += [f"- Kept: {_stage(step)}, of what keeps most of both content and style ({told})"]
    if parents := json.loads(about.get("parents", "[]")):
        origin = "Goes on from" if about["kind"] in ("content", "style") else "Made of"
        lines += [f"- {origin}: {', '.join(f'`{parent}`' for parent in parents)}"]
    return "\n".join(
        [*lines, "", *_example(about, uri, inference), *_pictures(about, digests)]
        + ["", "## Merge" if merged else "## Training", "", *_table(["parameter", "value"], shown), ""]
    )


def _stage(step: str) -> str:
    return "the halves as they were joined" if step == "0" else f"make's step {step}"


def summary(about: dict[str, str]) -> str:
    """What an adapter is, in Markdown, in a sentence or two."""
    if about["kind"] in ("made", "reconstructed", "merged"):
        content = f"**{about.get('content_name', '?')}** (`{about.get('content_token', '?')}`)"
        style = f"**{about.get('style_name', '?')}** (`{about.get('style_token', '?')}`)"
        if about["kind"] == "merged":
            return f"Two LoRAs merged by {about['method']}: the content {content}, the style {style}."
        how = "" if about["kind"] == "made" else " Its halves were put together, and not trained further."
        return f"A LoRA of Break-for-Make that draws {content} in the style {style}.{how}"
    return (
        f"The {about['kind']} half of a Break-for-Make LoRA: **{about['name']}**, in prompts `{about.get('token', '?')}`. It "
        "goes together with any other half of its frame."
    )


def _example(about: dict[str, str], uri: str, inference: dict[str, Any]) -> list[str]:
    if about["base_model"].endswith((".safetensors", ".gguf")):  # MLflow's own flavor loads folders and Hub ids alone
        asked, given = json.dumps({"prompt": [example_prompt(about) or "..."]}), json.dumps(inference)
        code = f"images = mlflow.pyfunc.load_model({json.dumps(uri)}).predict({asked}, params={given})  # PNGs"
        return ["## Use", "", "```python", "import mlflow", "", code, "```", ""]
    settings = "".join(f", {key}={json.dumps(value)}" for key, value in _arguments(about, inference).items())
    prompt = example_prompt(about) or "..."
    return [
        "## Use",
        "",
        f"Prompt: `{prompt}`",
        "",
        "```python",
        "import mlflow, torch",
        "",
        *([f"from diffusers import {_vae_class(about)}", ""] if "base_vae" in about else []),
        f'pipeline = mlflow.diffusers.load_model("{uri}").load_pipeline({_base_options(about)})',
        "generator = torch.Generator().manual_seed(0)",
        f"image = pipeline({json.dumps(prompt)}{settings}, generator=generator).images[0]",
        "```",
        "",
        f"As a service: `mlflow models serve -m {uri} --env-manager local`",
        "",
    ]


def _arguments(about: dict[str, str], inference: dict[str, Any]) -> dict[str, Any]:
    """What the base model's pipeline calls steps and guidance."""
    known: dict[str, Any] = {key: inference[key] for key in ("num_inference_steps", "guidance_scale") if key in inference}
    if PIPELINE_KEY not in about or "guidance_scale" not in known:
        return known
    family = _family(about)
    negative = {"negative_prompt": family.empty_prompt} if family.empty_prompt else {}
    return known | family.guidance(known.pop("guidance_scale")) | negative


def _family(about: dict[str, str]) -> Any:
    from b4m_pipeline.diffusion.families import FAMILIES  # which imports torch

    return FAMILIES[about[PIPELINE_KEY]]


def _vae_class(about: dict[str, str]) -> str:
    return _family(about).vae_class.__name__ if PIPELINE_KEY in about else "AutoencoderKL"


def _base_options(about: dict[str, str]) -> str:
    """What the pipeline needs besides the base model's name: which VAE, which files; MLflow keeps the revision itself."""
    options = []
    if "base_vae" in about:
        name, _, revision = about["base_vae"].partition("@")
        at = f", revision={json.dumps(revision)}" if revision else ""
        options.append(f"vae={_vae_class(about)}.from_pretrained({json.dumps(name)}{at})")
    if "base_variant" in about:
        options.append(f"variant={json.dumps(about['base_variant'])}")
    return ", ".join(options)


def _pictures(about: dict[str, str], digests: int) -> list[str]:
    """Of `TrainingSet.provenance`; joined halves have a digest alone."""
    lines = ["## Pictures", ""]
    if "pictures" in about:
        rows = []
        for role, of in json.loads(about["pictures"]).items():
            listed = [digest[:8] for digest in of["sha256"][:digests]]
            more = of["number"] - len(listed)
            sha256 = " ".join(listed) + (f" and {more} more" if listed and more else "")
            licences = ", ".join(f"{licence} ({count})" for licence, count in of["licences"].items())
            rows.append([role.replace("_", " "), str(of["number"]), licences, sha256])
        lines += [*_table(["role", "number", "licences", "sha256 begin with"], rows), ""]
    return [*lines, f"Digest of the training data, captions included: `{about['data_digest']}`"]


def _table(headings: list[str], rows: list[list[str]]) -> list[str]:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

    return [line(headings), "|" + "---|" * len(headings), *(line(row) for row in rows)]


def _figure(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.2f}"


def _value(value: Any) -> str:
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)
