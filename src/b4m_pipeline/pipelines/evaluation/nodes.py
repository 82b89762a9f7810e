"""Nodes of `evaluation`."""

import pandas as pd
from PIL import Image

from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.inputs.captions import plain_captions
from b4m_pipeline.inputs.folders import Picture, load_picture
from b4m_pipeline.inputs.params import CaptioningParams
from b4m_pipeline.inputs.prepare import own_pictures
from b4m_pipeline.method.adapter import KEPT_STEP, URI_KEY, Adapter


def draw_samples(
    content_adapter: Adapter,
    style_adapter: Adapter,
    reconstructed_adapter: Adapter,
    made_adapter: Adapter,
    manifest: pd.DataFrame,
    base_model: BaseModelParams,
    captioning: CaptioningParams,
    evaluation: EvaluationParams,
    seed: int,
) -> tuple[dict[str, Image.Image], pd.DataFrame]:
    """Pictures of every system with the same seeds, and the table that says which is which."""
    from b4m_pipeline.evaluation.evaluate import evaluate

    things = plain_captions(own_pictures(manifest, "style"), captioning)
    adapters = content_adapter, style_adapter, reconstructed_adapter, made_adapter
    return evaluate(*adapters, base_model, evaluation, things, seed)


def collect_references(
    manifest: pd.DataFrame,
    pictures: dict[str, Picture],
    made_adapter: Adapter,
    base_model: BaseModelParams,
    evaluation: EvaluationParams,
) -> dict[str, list[Image.Image]]:
    """What the samples are compared with: pictures of content and style and, where there is one, the true drawing."""
    from b4m_pipeline.evaluation.evaluate import EvaluationError, find_truth

    references = {}
    for kind in ("content", "style"):
        rows = own_pictures(manifest, kind)
        wanted = made_adapter.metadata[f"{kind}_name"]
        if set(rows["concept"]) != {wanted}:
            raise EvaluationError(
                f"the pictures of the {kind} are of {sorted(set(rows['concept']))}, the adapter is of {wanted!r}: "
                "run the ingestion pipeline with the adapter's parameters, or train the adapter anew"
            )
        references[kind] = [load_picture(pictures[key]) for key in rows["picture"]]
    about = made_adapter.metadata
    truth = find_truth(evaluation, about["content_name"], about["style_name"], base_model.resolution)
    return references | {"truth": truth}


def measure_samples(
    samples: pd.DataFrame,
    sample_pictures: dict[str, Picture],
    references: dict[str, list[Image.Image]],
    made_adapter: Adapter,
    manifest: pd.DataFrame,
    captioning: CaptioningParams,
    evaluation: EvaluationParams,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Figures of every picture, and their means with intervals; the means also go to MLflow."""
    from b4m_pipeline.evaluation.table import flat_metrics, measure, summarise
    from b4m_pipeline.registry.tracking import log_metrics

    pictures = {key: load_picture(sample_pictures[key]) for key in samples["picture"]}
    things = plain_captions(own_pictures(manifest, "style"), captioning)
    shown = references["content"], references["style"], references["truth"]
    measured = measure(samples, pictures, *shown, evaluation, things)
    summary = summarise(measured, seed)
    log_metrics(flat_metrics(summary), made_adapter.metadata.get(URI_KEY))
    return measured, summary


def draw_contact_sheet(
    samples: pd.DataFrame,
    sample_pictures: dict[str, Picture],
    references: dict[str, list[Image.Image]],
    summary: pd.DataFrame,
    made_adapter: Adapter,
) -> Image.Image:
    """References, base model, halves alone, halves joined, made, truth in one picture; it also goes to MLflow, and with the
    means into the description of the adapter's version."""
    from b4m_pipeline.common.sheets import Row, paint_grid
    from b4m_pipeline.evaluation import contact_sheet
    from b4m_pipeline.evaluation.samples import MADE
    from b4m_pipeline.evaluation.table import flat_metrics
    from b4m_pipeline.registry.tracking import MADE_PICTURE, describe_evaluation, log_picture

    about = made_adapter.metadata
    pictures = {key: load_picture(sample_pictures[key]) for key in samples["picture"]}
    title = f"{about['content_name']} ({about['content_token']}) in {about['style_name']} ({about['style_token']})"
    note = "make was no gain: the halves as joined" if about.get(KEPT_STEP) == "0" else ""
    sheet = contact_sheet.draw_contact_sheet(title, references, samples, pictures, summary, note)
    log_picture(sheet, "contact_sheet")
    made = samples[(samples["system"] == MADE) & (samples["kind"] == "composition")]["picture"]
    for key in made[:1]:
        log_picture(pictures[key], MADE_PICTURE)
    describe_evaluation(flat_metrics(summary), about.get(URI_KEY))
    for (system, kind), group in samples.groupby(["system", "kind"], sort=False):
        name = f"samples_{system.replace(' ', '_')}_{kind}"
        images = [pictures[key] for key in group["picture"]]
        log_picture(paint_grid([Row("", images)], cell=images[0].width, bare=True), name)
    return sheet


def draw_strengths(made_adapter: Adapter, base_model: BaseModelParams, evaluation: EvaluationParams, seed: int) -> Image.Image:
    """What the strengths of content and style do, as a sheet; it also goes to MLflow."""
    from b4m_pipeline.evaluation import strengths
    from b4m_pipeline.registry.tracking import log_picture

    sheet = strengths.draw_strengths(made_adapter, base_model, evaluation, seed)
    log_picture(sheet, "strengths")
    return sheet
