"""The words for a run's stages: what each is about to do, how long it will take as far as that was measured, what came of it,
and what comes next."""

import json
import os
from pathlib import Path
from typing import Any

from kedro.io import DataCatalog

from b4m_pipeline.common.progress import estimate
from b4m_pipeline.inputs.training_set import TrainingSet
from b4m_pipeline.method.adapter import KEPT_FIGURES, KEPT_STEP, Adapter, example_prompt
from b4m_pipeline.registry.adapters import adapter_uri

LABELS = {
    "ingestion": "pictures",
    "content_break": "content break",
    "style_break": "style break",
    "plp_reconstruction": "reconstruction",
    "joint_make": "make",
    "pretrain_further": "further pretraining",
    "pretrain_report": "report on the base model",
}
_PER_STEP = ("batch_size", "counterpart_batch_size", "gradient_accumulation", "one_pass", "precision", "masked_loss")
"""What a break's step costs follows from these, and from whether it preserves."""


def subject(names: list[str], inputs: set[str], parameters: dict[str, Any]) -> str:
    """A run's name: its pipelines, and the concepts or adapters that it is about. inputs: the pipelines'."""
    said = "+".join("break_make" if name == "__default__" else name for name in names)
    if names in (["library"], ["benchmark"]):
        return said
    if names == ["generate"]:
        return f"{said} {_short(parameters['generate'].adapter or 'base model')}"
    if names == ["compose"]:
        return f"{said} {_short(parameters['compose'].content)} {_short(parameters['compose'].style)}"
    made = any(name.endswith("_adapter") for name in inputs)  # by an earlier run, of both
    kinds = [kind for kind in ("content", "style") if kind in parameters and (made or f"params:{kind}" in inputs)]
    concepts = [parameters[kind].name for kind in kinds]
    return " ".join([said, "-".join(concepts)]) if concepts else said


def _short(source: str) -> str:
    """Of an adapter: the registered name with version or alias, or the last part of a path."""
    return source.removeprefix("models:/") if source.startswith("models:/") else Path(source).name


def folders(parameters: dict[str, Any]) -> dict[str, str]:
    """Where a run's pictures lie, by concept."""
    concepts = [parameters[kind] for kind in ("content", "style") if kind in parameters]
    if counterparts := parameters.get("counterparts"):
        concepts += [*counterparts.contents, *counterparts.styles]
    return {concept.name: concept.path for concept in concepts}


def doing(stage: str, parameters: dict[str, Any]) -> str:
    """What a stage is about to do. parameters: with typed models in place."""
    p = parameters
    match stage:
        case "ingestion":
            return f"those of {p['content'].name} and {p['style'].name} are checked, captioned and encoded"
        case "content_break" | "style_break":
            return f"{p[stage].steps} steps on {p[stage.removesuffix('_break')].name}"
        case "plp_reconstruction":
            return "the two halves become one adapter"
        case "joint_make":
            drawn = f"{p['make'].rehearsal.images} drawings as a rehearsal, then " if p["make"].rehearsal else ""
            return f"{drawn}{p['make'].steps} steps on both halves"
        case "evaluation":
            return "every stage's adapter draws, and the drawings are measured"
        case "compose":
            return f"{p['compose'].content} and {p['compose'].style} by {', '.join(p['compose'].methods)}"
        case "generate":
            return f"{p['generate'].images_per_prompt} images a prompt by {p['generate'].adapter or 'the base model alone'}"
        case "library":
            return f"every content and style of {p['library'].table}"
        case "benchmark":
            b = p["benchmark"]
            return f"{len(b.chosen_pairs())} pairs, {len(b.methods)} methods on each; what is finished is kept in {b.folder}"
    return "begins"


def seconds(stage: str, parameters: dict[str, Any]) -> float | None:
    """How long a stage will take by what was measured in this process: a break by the other one, if its steps are alike, and
    an evaluation by the drawings before it. None where nothing was."""
    own = parameters.get(stage)
    if stage in ("content_break", "style_break"):
        other = "style_break" if stage == "content_break" else "content_break"
        left = estimate(other.replace("_", " "), own.steps) if own else None
        return left if left and _step_of(own) == _step_of(parameters[other]) else None
    if stage == "evaluation" and own is not None:
        drawn = own.samples * (5 + 2 * len(own.prompts))  # what is known twice, base, both halves alone; joined and made
        return estimate("drawing", drawn + 5, own.steps)  # and nine in half the steps, for the strengths
    return None


def _step_of(training: Any) -> list[Any]:
    return [*(getattr(training, name) for name in _PER_STEP), bool(training.preservation_weight)]


def done(stage: str, outputs: dict[str, Any], catalog: DataCatalog) -> str:
    """What came of a stage and where it lies. outputs: of its last node, by dataset, which are saved."""
    adapter = next((data for data in outputs.values() if isinstance(data, Adapter)), None)
    match stage:
        case "ingestion":
            return _pictures(outputs, catalog)
        case "content_break" | "style_break" | "plp_reconstruction" | "joint_make" if adapter:
            name = next(name for name, data in outputs.items() if data is adapter)
            return ", ".join([*_kept(adapter), *_version(catalog, name), str(place(catalog, name))])
        case "evaluation" | "generate" | "library" | "benchmark" | "compose":
            return ", ".join(str(place(catalog, name)) for name in catalog.keys() if name in _RESULTS[stage])
    return ""


_RESULTS = {
    "evaluation": ("contact_sheet", "strength_sheet"),
    "generate": ("generated_pictures", "generated_sheet"),
    "library": ("library_halves", "library_pairs", "library_sheet"),
    "compose": ("reconstructed_adapter", "merged_adapters", "composed_sheets"),
    "benchmark": ("benchmark_report",),
}


def _pictures(outputs: dict[str, Any], catalog: DataCatalog) -> str:
    data = next((data for data in outputs.values() if isinstance(data, TrainingSet)), None)
    if data is None:
        return ""
    files = data.table.drop_duplicates(["role", "sha256"])
    counts = files.groupby("role").size()
    named = [f"{counts[role]} of {files.loc[files['role'] == role, 'concept'].iloc[0]}" for role in ("content", "style")]
    if others := int(counts[counts.index.str.startswith("counterpart")].sum()):
        named.append(f"{others} of counterparts")
    return f"{', '.join(named)}; with their captions in {place(catalog, 'input_sheet')}"


def _kept(adapter: Adapter) -> list[str]:
    """Which of make's steps was kept, and by what figures; nothing if the halves are kept as they were joined."""
    if adapter.metadata.get(KEPT_STEP, "0") == "0":  # a warning has said so
        return []
    step, figures = adapter.metadata[KEPT_STEP], json.loads(adapter.metadata[KEPT_FIGURES])
    said = "; ".join(f"{'halves joined' if at == '0' else f'step {at}'} {own['kept']:.2f}" for at, own in figures.items())
    return [f"step {step} keeps most ({said})"]


def _version(catalog: DataCatalog, dataset: str) -> list[str]:
    folder = place(catalog, dataset)
    found = adapter_uri(folder) if folder else None
    return [found] if found else []


def with_aliases(uri: str) -> str:
    """The aliases of a version, "models:/NAME/VERSION", in brackets; nothing if the registry does not say."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        found = MlflowClient().get_model_version(*uri.removeprefix("models:/").rsplit("/", 1)).aliases
    except MlflowException:
        return ""
    return f" ({', '.join(sorted(found))})" if found else ""


def place(catalog: DataCatalog, dataset: str) -> Path | None:
    """Where a dataset lies, from the working directory if it is in there. None: nowhere, or not on this machine's disk."""
    own = catalog.get(dataset)
    known = own._describe() if own is not None else {}
    path = known.get("filepath") or known.get("path")
    if not path or "://" in str(path):
        return None
    path = Path(str(path))
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def ending(stages: list[str], catalog: DataCatalog, env: str | None) -> list[str]:
    """The last lines: the made picture, the figure that counts, the versions in the registry and the next commands."""
    if "evaluation" not in stages:
        return []
    lines = _measured(catalog)
    versions = [uri for name in ("content_adapter", "style_adapter", "made_adapter") for uri in _version(catalog, name)]
    if versions:
        lines.append(f"In the registry: {', '.join(uri + with_aliases(uri) for uri in versions)}")
    return lines + _next(catalog, env)


def _measured(catalog: DataCatalog) -> list[str]:
    from b4m_pipeline.evaluation.samples import JOINED, MADE

    samples, summary = catalog.load("samples"), catalog.load("evaluation_summary")
    made = samples[(samples["system"] == MADE) & (samples["kind"] == "composition")]["picture"]
    lines = [f"Made: {place(catalog, 'sample_pictures')}{os.sep}{made.iloc[0]}.png"] if len(made) else []
    kept = summary[(summary["kind"] == "composition") & (summary["measure"] == "kept")].set_index("system")
    if MADE in kept.index:
        joined = f"; the halves as joined: {kept.loc[JOINED, 'mean']:.2f}" if JOINED in kept.index else ""
        of = f"{kept.loc[MADE, 'low']:.2f} to {kept.loc[MADE, 'high']:.2f} over {kept.loc[MADE, 'pictures']} drawings"
        lines.append(f"Kept of both content and style: {kept.loc[MADE, 'mean']:.2f} ({of}{joined})")
    return lines


def _next(catalog: DataCatalog, env: str | None) -> list[str]:
    """Commands for the made adapter."""
    adapter, versions = catalog.load("made_adapter"), _version(catalog, "made_adapter")
    source, prompt = versions[0] if versions else str(place(catalog, "made_adapter")), example_prompt(adapter.metadata)
    option = f" --env={env}" if env not in (None, "local") else ""
    asked = f",generate.prompts=['{prompt.replace(chr(39), chr(39) * 2)}']" if prompt else ""
    lines = [f'Next: kedro run{option} --pipelines=generate --params="generate.adapter={source}{asked}"']
    if versions:
        name, number = versions[0].removeprefix("models:/").rsplit("/", 1)
        lines.append(f"      kedro promote {name} --version {number}")
    return [*lines, f"      kedro studio{option}"]
