"""A small project with a registered pair, as the studio sees it."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from tests.conftest import PLAIN_EVALUATION, TINY_FRAME, captioning_params, ingestion_params
from tests.library.helpers import folder
from tests.training.helpers import BREAK, MAKE

CONTENT, STYLE, MADE = "models:/b4m-content-cup/1", "models:/b4m-style-ink/1", "models:/b4m-make-cup-ink/1"
SIDE = 32


@pytest.fixture(scope="session")
def registered(tmp_path_factory, empty_store, tiny_halves, tiny_joined) -> SimpleNamespace:
    """A store with both halves and a made adapter of one evaluated run. store: its file; run: the run's id."""
    import dataclasses
    import json

    import mlflow

    from b4m_pipeline.method.files import save_adapter
    from b4m_pipeline.registry.adapters import register_adapter
    from b4m_pipeline.registry.tracking import log_metrics, log_picture

    root = tmp_path_factory.mktemp("studio")
    shutil.copy(empty_store, root / "mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{root / 'mlflow.db'}")
    mlflow.create_experiment("studio", artifact_location=str(root / "mlartifacts"))
    mlflow.set_experiment("studio")
    about = tiny_joined.metadata | {"kind": "made", "parents": json.dumps([CONTENT, STYLE])}
    with mlflow.start_run(run_name="break_make") as run:
        for adapter in (*tiny_halves, dataclasses.replace(tiny_joined, metadata=about)):
            own = root / adapter.metadata["kind"]
            save_adapter(adapter, own)
            register_adapter(own)
        log_metrics({"evaluation.made.composition.kept": 0.5, "evaluation.halves_joined.composition.kept": 0.4})
        log_metrics({"evaluation.base.composition.content_clip": 0.25})
        for name, colour in (("made_composition", "red"), ("content_alone_content", "blue")):
            log_picture(Image.new("RGB", (3 * SIDE, SIDE), colour), f"samples_{name}")
    mlflow.set_tracking_uri(None)
    return SimpleNamespace(store=root / "mlflow.db", run=run.info.run_id)


@pytest.fixture
def registry(registered, tmp_path, monkeypatch) -> SimpleNamespace:
    """A copy of `registered` of the test's own, in use."""
    import mlflow

    shutil.copy(registered.store, tmp_path / "mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.set_experiment("studio")
    yield registered
    mlflow.set_tracking_uri(None)


@pytest.fixture
def project(tmp_path) -> Path:
    """A folder with pictures of a content and a style in its raw data."""
    folder(tmp_path / "project/data/01_raw/own/cup", (200, 30, 30))
    folder(tmp_path / "project/data/01_raw/own/ink", (20, 20, 90))
    return tmp_path / "project"


@pytest.fixture
def places(project):
    from b4m_pipeline.studio.places import Places

    return Places(project)


@pytest.fixture
def parameters(tiny_base) -> dict:
    from b4m_pipeline.diffusion.params import GenerateParams
    from b4m_pipeline.evaluation.params import EvaluationParams
    from b4m_pipeline.inputs.params import ConceptParams, CounterpartParams
    from b4m_pipeline.library.params import ComposeParams
    from b4m_pipeline.method.params import FrameParams
    from b4m_pipeline.training.params import BreakParams, MakeParams

    half = BreakParams(**BREAK)
    return {
        "seed": 0,
        "content": ConceptParams(path="any", token="snq", noun="toy"),
        "style": ConceptParams(path="any", token="w@z", noun="toy"),
        "counterparts": CounterpartParams(contents=[], styles=[]),
        "base_model": tiny_base,
        "frame": FrameParams(**TINY_FRAME),
        "content_break": half,
        "style_break": half,
        "make": MakeParams(**MAKE),
        "ingestion": ingestion_params(),
        "captioning": captioning_params(),
        "generate": GenerateParams(adapter="any", prompts=None, steps=2, device="cpu"),
        "compose": ComposeParams(content="any", style="any"),
        "evaluation": EvaluationParams(
            prompts=["{article} {content} {noun} in {style} style"], content_prompt="{content}", style_prompt="{style}",
            samples=2, steps=1, device="cpu", **PLAIN_EVALUATION,
        ),
    }  # fmt: skip


@pytest.fixture
def canvas(parameters, registry):
    from b4m_pipeline.one_line import explain
    from b4m_pipeline.studio.canvas import Canvas

    return Canvas(parameters, explain)


def asked(**changes):
    """A DrawingRequest of the pair's joined halves, one picture in two steps."""
    from b4m_pipeline.studio.asked import DrawingRequest

    plain = {"content": CONTENT, "style": STYLE, "ways": ["halves"], "prompt": "a snq toy in w@z style", "steps": 2}
    return DrawingRequest(**plain | {"guidance_scale": 2.0} | changes)


def drawn(canvas, **changes):
    """The drawing of such a request when it has ended."""
    import time

    drawing = canvas.submit(asked(**changes))
    for _ in range(600):
        if drawing.ended:
            return drawing
        time.sleep(0.05)
    raise AssertionError(f"still {drawing.state}")
