"""The report on a base model: right answers count as right, and a lesson teaches what it says."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from b4m_pipeline.evaluation.judges import EfficientNetJudge
from b4m_pipeline.pretrain import report
from b4m_pipeline.pretrain.corpus import Drawings
from b4m_pipeline.pretrain.params import ReportParams
from tests.conftest import PIXELS

HANDS = ["red", "blue", "green", "held"]
CONTENTS = ["square", "cross", "disc", "new thing"]


@pytest.fixture(scope="module")
def drawings() -> Drawings:
    """Three known shapes and a held-out one, by three known hands (colours) and a held-out one (stripes)."""
    y, x = np.mgrid[0:PIXELS, 0:PIXELS] - PIXELS / 2 + 0.5
    shapes = [
        np.maximum(abs(x), abs(y)) < 10,
        np.minimum(abs(x), abs(y)) < 4,
        np.hypot(x, y) < 11,
        (abs(x) < 13) & (abs(y) < 5),
    ]
    rgba, rows = [], []
    for content, shape in zip(CONTENTS, shapes, strict=True):
        for hand, colour in zip(HANDS, [(220, 40, 40), (40, 40, 220), (40, 180, 60), (90, 90, 90)], strict=True):
            drawing = np.zeros((PIXELS, PIXELS, 4), np.uint8)
            drawing[shape] = (*colour, 255)
            if hand == "held":
                drawing[(y.astype(int) % 4 < 2) & shape] = (240, 220, 20, 255)
            rgba.append(drawing)
            split = {(0, 0): "train", (1, 0): "held_out_content", (0, 1): "held_out_hand", (1, 1): "held_out_both"}
            rows.append((content, hand, hand, split[content == "new thing", hand == "held"], "", "CC0"))
    return Drawings(np.stack(rgba), pd.DataFrame(rows, columns=["content", "hand", "style", "split", "keywords", "licence"]))


@pytest.fixture(scope="module")
def pipeline(tiny_sdxl):
    from diffusers import StableDiffusionXLPipeline

    loaded = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, use_safetensors=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def bank(pipeline, drawings):
    return report.Bank(pipeline, drawings, EfficientNetJudge())


def test_true_drawings_are_right_and_others_are_wrong(bank) -> None:
    """What the figures rest on: by both judges every true drawing is its own best answer, and another one is not."""
    rows = np.arange(len(bank.table))
    right = bank.measure(bank.pictures(rows), rows)
    figures = report.figures_of(right)
    assert all(figures[name] == 1 for name in figures if "top" in name) and figures["truth"] == pytest.approx(1, abs=1e-5)
    other_content = bank.measure(bank.pictures((rows + 4) % 16), rows)
    assert (other_content["content"] > 0).all() and (other_content["content_latent"] > 0).all()
    assert (other_content["style"] == 0).mean() > 0.8  # the same hand still, on another shape
    other_hand = bank.measure(bank.pictures(rows // 4 * 4 + (rows + 1) % 4), rows)
    assert (other_hand["style"] > 0).all() and (other_hand["truth_distance"] > right["truth_distance"]).all()


def test_the_ceiling_is_what_the_vae_leaves_of_the_true_drawings(bank, monkeypatch) -> None:
    monkeypatch.setattr(report, "round_trip", lambda vae, images: images)
    lossless = report.judge_ceiling(bank, 4, 0)
    assert lossless["what"].tolist() == ["true drawings: trained pairs", "true drawings: held"]
    assert lossless["pairs"].tolist() == [4, 3] and (lossless[["content_top1", "style_top1"]] == 1).all(axis=None)
    monkeypatch.setattr(report, "round_trip", lambda vae, images: images.mean((2, 3), keepdim=True).expand_as(images))
    assert (report.judge_ceiling(bank, 4, 0)["truth"] < lossless["truth"]).all()


def test_a_held_out_concept_is_taught_from_its_own_drawings_alone(bank, tiny_base) -> None:
    params = ReportParams(
        pairs=2, contents=[], hands=[], targets={}, shown_hands=["red", "blue"], shown_contents=2, asked_contents=1
    )
    content, asked = report._lesson(bank, "content", "new thing", params, tiny_base)
    assert asked == [12, 13] and content.table["caption"].tolist() == ["a snq emoji in red style", "a snq emoji in blue style"]
    style, asked = report._lesson(bank, "style", "held", params, tiny_base)
    shown = [int(key) for key in style.table["picture"]]
    assert set(shown) | set(asked) == {3, 7, 11} and len(shown) == 2 and len(asked) == 1
    assert all(caption.endswith(" emoji in w@z style") for caption in style.table["caption"])


def test_report_draws_judges_and_teaches(pipeline, bank, tiny_base) -> None:
    prompted = report.judge_prompts(pipeline, bank, 2, 0)
    assert prompted["what"].tolist() == ["prompts: train", "prompts: held_out_content"]
    assert prompted["content_top1"].between(0, 1).all() and prompted["kernel_distance"].gt(0).all()
    params = ReportParams(
        pairs=2, contents=["new-thing"], hands=["held"], shown_hands=["red"], shown_contents=2, asked_contents=1, samples=2,
        steps=2, batch_size=2, rank=2, targets={"attention": ["to_q", "to_v"]},
    )  # fmt: skip
    taught, pictures = report.judge_teaching(pipeline, bank, params, tiny_base, 0)
    assert taught["what"].tolist() == ["LoRA on attention: content new thing", "LoRA on attention: style held"]
    assert list(pictures) == taught["what"].tolist()
    assert [picture.size for row in pictures.values() for picture in row] == [(PIXELS, PIXELS)] * 4
    assert not pipeline.get_active_adapters()  # the next drawing is the base's again


def test_sheet_shows_the_truth_below(pipeline, drawings) -> None:
    sheet = report.sample_sheet(pipeline, drawings, ["square", "disc"], HANDS[:2], 0)
    assert sheet.size == (2 * PIXELS, 4 * PIXELS)
    true = sheet.crop((0, PIXELS, PIXELS, 2 * PIXELS))
    assert true.tobytes() == Image.fromarray(drawings.on()[0]).tobytes()
