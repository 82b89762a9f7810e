"""The guard over make keeps what has most of both, and says what it saw."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from b4m_pipeline.evaluation import guard as module
from b4m_pipeline.evaluation.guard import MakeGuard
from b4m_pipeline.evaluation.samples import KNOWN
from b4m_pipeline.method.adapter import Adapter
from tests.evaluation.helpers import PARAMS


def picture(red: int) -> Image.Image:
    return Image.fromarray(np.full((32, 32, 3), (red, 40, 40), np.uint8))


@pytest.fixture
def guard(tiny_base) -> MakeGuard:
    shown = [picture(200), picture(220)], [picture(10), picture(30)]
    return MakeGuard(tiny_base, PARAMS, *shown, ["a car toy", None], seed=0)


def kept(monkeypatch, guard, figures: dict[str, tuple[float, float]], joined: Adapter) -> tuple[int, dict]:
    """What is chosen where each system's drawings have these shares of content and style."""
    asked = []

    def draw(requests, adapters, base_model, params):
        asked.extend(requests)
        assert params.steps == PARAMS.steps // 2 and list(adapters)[0] == "base"
        return {request.key: picture(0) for request in requests}

    def measure(samples, *rest):
        content, style = (samples["system"].map({**figures, "base": (1, 1)}).str[place] for place in (0, 1))
        return samples.assign(content_kept=content, style_kept=style, kept=np.minimum(content, style))

    monkeypatch.setattr(module, "draw_samples", draw)
    monkeypatch.setattr(module, "measure", measure)
    chosen = guard.choose({int(step): joined for step in figures})
    composed = [request for request in asked if request.kind == "composition"]
    assert len(composed) == PARAMS.samples * len(figures) and {r.prompt for r in composed} == {"a snq toy in w@z style"}
    assert {request.seed for request in composed}.isdisjoint(range(100))  # not those that evaluation draws with
    assert [request.prompt for request in asked if request.kind == KNOWN] == ["a car toy"] * 2
    return chosen


@pytest.mark.parametrize(
    ("figures", "step"),
    [
        ({"0": (0.9, 0.8), "2": (0.9, 0.85), "4": (1.0, 0.3)}, 2),  # the lower one counts
        ({"0": (0.9, 0.8), "2": (1.0, 0.1), "4": (1.0, 0.1)}, 0),
        ({"0": (0.5, 0.6), "2": (0.5, 0.6), "4": (0.5, 0.6)}, 4),
    ],
)
def test_the_lower_of_content_and_style_decides(monkeypatch, guard, tiny_joined, figures, step):
    chosen, seen = kept(monkeypatch, guard, figures, tiny_joined)
    assert chosen == step and seen[0] == {
        "kept": min(figures["0"]), "content_kept": figures["0"][0], "style_kept": figures["0"][1]
    }  # fmt: skip


def test_it_measures_drawings_of_the_adapters(guard, tiny_joined):
    """Unmocked, on the tiny base: an adapter that gives noise is not preferred to one that gives what the joined one does."""
    ruined = {key: 50 * torch.randn_like(tensor) for key, tensor in tiny_joined.tensors.items()}
    step, figures = guard.choose({0: tiny_joined, 4: dataclasses.replace(tiny_joined, tensors=ruined)})
    assert figures.keys() == {0, 4} and all(0 <= value <= 1 for own in figures.values() for value in own.values())
    assert figures[0] != figures[4] and step in (0, 4)


def test_what_decides_its_choice_is_in_its_settings(guard):
    assert guard.settings == dataclasses.replace(guard).settings
    other = PARAMS.model_copy(update={"guidance_scale": 1.0})
    assert dataclasses.replace(guard, evaluation=other).settings != guard.settings
    assert dataclasses.replace(guard, things=[None, None]).settings != guard.settings
    assert dataclasses.replace(guard, evaluation=PARAMS.model_copy(update={"batch_size": 9})).settings == guard.settings


@pytest.mark.slow
def test_a_make_that_was_spoilt_on_purpose_is_not_kept(tmp_path, monkeypatch):
    """On the embedded base, with shorter breaks: at ten times the rate and without rehearsal make loses the blueprint."""
    from kedro.config import OmegaConfigLoader

    from b4m_pipeline.benchmark.ours import Variant, break_for_make
    from b4m_pipeline.benchmark.params import CompetitorParams, PairParams
    from b4m_pipeline.benchmark.shelf import Shelf
    from b4m_pipeline.benchmark.task import Sources, Task, prepare_pair
    from b4m_pipeline.diffusion.params import BaseModelParams
    from b4m_pipeline.evaluation.params import EvaluationParams
    from b4m_pipeline.inputs import params as inputs
    from b4m_pipeline.inputs.encode import encode_training_set
    from b4m_pipeline.method.params import FrameParams
    from b4m_pipeline.training.params import BreakParams, MakeParams
    from tests.test_startup import ROOT

    monkeypatch.chdir(ROOT)
    p = OmegaConfigLoader("conf", base_env="base", default_run_env="base")["parameters"]
    base = BaseModelParams(**p["base_model"])
    ingestion, captioning = inputs.IngestionParams(**p["ingestion"]), inputs.CaptioningParams(**p["captioning"])
    pair = PairParams(content="data/01_raw/contents/crown", style="data/01_raw/styles/blueprint")
    concepts = [inputs.ConceptParams(**p[kind]) for kind in ("content", "style")]
    known = inputs.CounterpartParams(**p["counterparts"]), inputs.PreservationParams(**p["preservation"])
    own = prepare_pair(pair, *concepts, known[0], ingestion, captioning, known[1], base.resolution, 0)
    breaks = [BreakParams(**p[f"{kind}_break"] | {"steps": 250}) for kind in ("content", "style")]
    task = Task(
        encode_training_set(own.prepared.manifest, own.prepared.pictures, base, own.preserved),
        *(base, FrameParams(**p["frame"]), own.content, own.style, *breaks, MakeParams(**p["make"])),
        *(CompetitorParams(**p["benchmark"]["competitors"]), 0, Shelf(tmp_path)),
        Sources(own.prepared, ingestion, captioning, EvaluationParams(**p["evaluation"])),
    )
    spoilt = break_for_make(task, Variant(make={"learning_rate": 10 * task.make.learning_rate}, rehearsal=False))
    figures = json.loads(spoilt.metadata["kept_figures"])
    assert spoilt.metadata["kept_step"] == "0", figures
    assert figures["0"]["style_kept"] > figures[str(task.make.steps)]["style_kept"] + 0.2
    joined = break_for_make(task, Variant(joined=True))
    assert all(torch.equal(spoilt.tensors[key], joined.tensors[key]) for key in joined.tensors)


def test_of_two_sets_of_drawings_it_prefers_the_one_that_keeps_more(guard):
    """Unmocked: one set is the content's picture in the style's colour, the other noise."""
    noise = [Image.effect_noise((32, 32), 120).convert("RGB")] * 2
    assert guard.prefer({"noise": noise, "style": [picture(20)] * 3}) == "style"
    assert guard.prefer({"style": [picture(20)] * 3, "noise": noise}) == "style"
    assert guard.prefer({"one": noise, "other": noise}) == "one"
