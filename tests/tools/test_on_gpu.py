"""The one command that makes the base on a GPU machine, here at toy size on a CPU, and what serves it with batches."""

import argparse
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from diffusers import StableDiffusionXLPipeline

from b4m_pipeline.pretrain import corpus
from b4m_pipeline.pretrain.corpus import Drawings
from tests.pretrain.helpers import PARAMS
from tools import on_gpu


@pytest.fixture
def drawings() -> Drawings:
    rng = np.random.default_rng(0)
    names = [(content, hand) for content in ("square", "cross", "ring") for hand in ("red", "blue")]
    rows = [(content, hand, hand, "train", "shape", "CC0") for content, hand in names]
    rgba = rng.integers(0, 256, (len(rows), 32, 32, 4), np.uint8)
    rgba[:, :4, :, 3] = 0
    return Drawings(rgba, pd.DataFrame(rows, columns=["content", "hand", "style", "split", "keywords", "licence"]))


@pytest.fixture
def arguments(tmp_path, drawings, monkeypatch) -> argparse.Namespace:
    """What the command was given, and a corpus that is there already."""
    monkeypatch.setattr(corpus, "build", lambda **options: drawings)
    monkeypatch.setattr(on_gpu, "_RESERVE", 0)
    folders = {name: str(tmp_path / name) for name in ("output", "clip_output", "checkpoints")}
    own = PARAMS.model_copy(update=folders | {"denoiser": PARAMS.denoiser.model_copy(update={"checkpoint_every": 1000})})
    file = tmp_path / "parameters.yml"
    file.write_text(yaml.safe_dump({"pretrain": own.model_dump(mode="json")}))
    return argparse.Namespace(parameters=file, seconds=600.0, compile=False, processes=1)


@pytest.mark.slow
def test_the_denoiser_gets_the_time_that_is_left(arguments, tmp_path, monkeypatch) -> None:
    start = subprocess.Popen

    def here(command: list[str]) -> subprocess.Popen:
        """The command in this process, which has imported what it needs."""
        assert command[:3] == [sys.executable, "-m", "tools.on_gpu"]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", command[2:])
            on_gpu.main()
        return start(["true"])

    monkeypatch.setattr(on_gpu.subprocess, "Popen", here)
    rehearse = on_gpu.rehearse
    monkeypatch.setattr(on_gpu, "rehearse", lambda *given: rehearse(*given) * 0 + 20)  # seconds a step, as on a slow machine
    on_gpu.run(arguments)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path / "output", use_safetensors=True)
    assert pipeline.unet.config.in_channels == PARAMS.vae.latent_channels
    (training,) = json.loads((tmp_path / "output/training.json").read_text())
    assert training["contents"] == ["cross", "ring", "square"]
    assert PARAMS.denoiser.steps < training["steps"] <= 30  # as many as fit, not those of the configuration
    assert json.loads((tmp_path / "clip_output/tags.json").read_text())["contents"] == ["cross", "ring", "square"]


@pytest.mark.slow
def test_too_little_time_is_an_error_and_no_process_stays(arguments, monkeypatch) -> None:
    arguments.seconds, started = 0.5, []
    commands = {"vae": ["true"], "clip": ["sleep", "600"]}
    monkeypatch.setattr(on_gpu, "_stage", lambda name, _: started.append(subprocess.Popen(commands[name])) or started[-1])
    with pytest.raises(RuntimeError, match="give it more --seconds"):
        on_gpu.run(arguments)
    assert len(started) == 2 and all(process.poll() is not None for process in started)


def test_a_part_that_fails_stops_the_others(arguments, monkeypatch, tmp_path) -> None:
    started = []
    commands = {"vae": ["false"], "clip": ["sleep", "600"]}
    monkeypatch.setattr(on_gpu, "_stage", lambda name, _: started.append(subprocess.Popen(commands[name])) or started[-1])
    with pytest.raises(RuntimeError, match="The VAE could not be trained"):
        on_gpu.run(arguments)
    assert all(process.poll() is not None for process in started)
    assert not (tmp_path / "output").exists()


def test_drawings_come_back_from_the_disk(drawings, tmp_path) -> None:
    on_gpu.save_drawings(drawings, tmp_path)
    assert on_gpu.load_drawings(tmp_path).digest() == drawings.digest()
