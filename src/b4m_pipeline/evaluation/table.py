"""The table of figures: what is measured of every image, and the means of all that."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from PIL import Image

from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.common.seeding import numpy_generator
from b4m_pipeline.evaluation.colour import palette_likeness, palettes
from b4m_pipeline.evaluation.judges import ClipJudge, EfficientNetJudge
from b4m_pipeline.evaluation.measures import (
    Judgement,
    content_range,
    harmonic_mean,
    perceptual_distance,
    similarity,
    style_range,
)
from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.evaluation.samples import KNOWN

MEASURES = (
    "kept", "content_kept", "style_kept", "content", "style", "colour", "s_harm", "content_clip", "style_clip", "s_harm_clip",
    "prompt_clip", "truth", "truth_distance", "truth_colour",
)  # fmt: skip


def measure(
    samples: pd.DataFrame,
    pictures: dict[str, Image.Image],
    content_references: list[Image.Image],
    style_references: list[Image.Image],
    truth: list[Image.Image],
    params: EvaluationParams,
    things: Sequence[str | None] = (),
) -> pd.DataFrame:
    """Add what is measured to the table of pictures, a column each; NaN where a measure has no sense.

    content, style: mean cosine to the references by EfficientNet; colour: mean likeness of palettes to the style's references;
    s_harm: harmonic mean of the first two; the same by CLIP with the suffix _clip; prompt_clip: cosine of picture and plain
    prompt; truth, truth_distance, truth_colour: to the true drawing, for the composition alone. content_kept, style_kept:
    shares of what is possible (see docs/evaluation.md), kept: the lower of both. The halves alone have no s_harm and no kept.
    things: what each style reference shows, whose drawings by the base model (`KNOWN`) are among the samples.
    """
    device, images = pick_device(params.device), [pictures[key] for key in samples["picture"]]
    table = samples.reset_index(drop=True)
    both = ~samples["kind"].isin(["content", "style", KNOWN]).to_numpy()
    composed = (samples["kind"] == "composition").to_numpy()
    style_shares = []
    judges = [EfficientNetJudge(device)] + ([ClipJudge(params.clip, device)] if params.clip else [])
    for judge in judges:
        suffix = "" if judge.name == "efficientnet" else f"_{judge.name}"
        needs_maps = bool(truth) and not suffix
        seen: Judgement = judge.look(images, maps=needs_maps)
        content, style = judge.look(content_references), judge.look(style_references)
        near_content, near_style = similarity(seen.content, content.content), similarity(seen.style, style.style)
        table[f"content{suffix}"], table[f"style{suffix}"] = near_content.numpy(), near_style.numpy()
        table[f"s_harm{suffix}"] = np.where(both, harmonic_mean(near_content, near_style).numpy(), np.nan)
        style_shares.append(style_range(style.style @ style.style.T, content.style @ style.style.T).share(near_style))
        if isinstance(judge, ClipJudge):
            table["prompt_clip"] = (seen.content * judge.read(samples["plain"].tolist())).sum(1).numpy()
        else:
            known = _known(table, seen.content, things)
            table["content_kept"] = content_range(content.content, style.content, known).share(near_content).numpy()
        if needs_maps:
            true = judge.look(truth, maps=True)
            table["truth"] = np.where(composed, similarity(seen.content, true.content).numpy(), np.nan)
            table["truth_distance"] = np.where(composed, perceptual_distance(seen, true).numpy(), np.nan)
    own, content_colours, style_colours = (palettes(group) for group in (images, content_references, style_references))
    colour = palette_likeness(own, style_colours).mean(1)
    of_content = palette_likeness(content_colours, style_colours)
    style_shares.append(style_range(palette_likeness(style_colours, style_colours), of_content).share(colour))
    table["colour"], table["style_kept"] = colour.numpy(), torch.stack(style_shares).mean(0).numpy()
    table["kept"] = np.where(both, table[["content_kept", "style_kept"]].min(axis=1), np.nan)
    if truth:
        alike = palette_likeness(own, palettes(truth)).max(1).values
        table["truth_colour"] = np.where(composed, alike.numpy(), np.nan)
    return table


def _known(samples: pd.DataFrame, seen: torch.Tensor, things: Sequence[str | None]) -> list[torch.Tensor | None]:
    """For each style reference the features (K, D) of the base model's drawings of what it shows, where there are any."""
    drawn = samples[samples["kind"] == KNOWN]
    rows = {prompt: group.index.tolist() for prompt, group in drawn.groupby("prompt")} if len(drawn) else {}
    return [seen[rows[thing]] if thing in rows else None for thing in things]


def summarise(measured: pd.DataFrame, seed: int, draws: int = 2000) -> pd.DataFrame:
    """Means over the seeds with 95 % bootstrap intervals: system, kind, measure, mean, low, high, pictures."""
    rows = []
    for (system, kind), group in measured[measured["kind"] != KNOWN].groupby(["system", "kind"], sort=False):
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
