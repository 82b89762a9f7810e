"""The embedded base from its vector sources in one go, on a machine with one GPU and no network, in a given time.

    make corpus
    python -m tools.on_gpu --seconds 900

runs what `kedro run --pipelines=pretrain` runs, with the same parameters and the same code, but side by side: while the
drawings' autoencoder is trained, so is the CLIP, and the denoiser is compiled. The denoiser is trained for as many steps as
fit in what is left of the time; its record (training.json) says how many. Needed are PyTorch, diffusers, transformers,
Pydantic and resvg, but neither Kedro nor MLflow.
"""

import argparse
import logging
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml

from b4m_pipeline.common.devices import pick_device
from b4m_pipeline.pipelines.pretrain import nodes
from b4m_pipeline.pretrain import denoiser
from b4m_pipeline.pretrain.corpus import Drawings
from b4m_pipeline.pretrain.params import PretrainParams

logger = logging.getLogger("tools.on_gpu")

PARAMETERS = Path("conf/base/parameters_pretrain.yml")
_RESERVE = 40  # seconds for the views and for writing the model
_REHEARSED = 30  # steps whose time is taken


def read_params(file: Path, compiled: bool, processes: int) -> PretrainParams:
    """The `pretrain` parameters of a Kedro configuration, for this machine."""
    params = PretrainParams.model_validate(yaml.safe_load(file.read_text(encoding="utf-8"))["pretrain"])
    params = params.model_copy(update={"corpus": params.corpus.model_copy(update={"processes": processes})})
    return _with_denoiser(params, compile=compiled)


def _with_denoiser(params: PretrainParams, **changes) -> PretrainParams:
    return params.model_copy(update={"denoiser": params.denoiser.model_copy(update=changes)})


def save_drawings(drawings: Drawings, folder: Path) -> None:
    """Pictures and table, for the processes that learn from them."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "drawings.npy", drawings.rgba)
    drawings.table.to_parquet(folder / "drawings.parquet")


def load_drawings(folder: Path) -> Drawings:
    """What `save_drawings` wrote; the pictures stay on disk until they are read."""
    return Drawings(np.load(folder / "drawings.npy", mmap_mode="r"), pd.read_parquet(folder / "drawings.parquet"))


def rehearse(drawings: Drawings, tokenizer_folder: str, pretrain: PretrainParams, steps: int, folder: Path) -> float:
    """Train a denoiser that is thrown away, on latents drawn by lot, at full size -> seconds a step, without the first ones.
    tokenizer_folder: what `nodes.train_tokenizer` wrote; folder: for a checkpoint that does not stay."""
    from transformers import CLIPTokenizer

    size = pretrain.size // 2 ** (len(pretrain.vae.channels) - 1)
    few = drawings.select(np.arange(len(drawings.table)) < 2000)
    latents = torch.randn(len(few.table), pretrain.vae.latent_channels, size, size)
    views = denoiser.Views(latents, np.arange(len(few.table)), np.full(len(few.table), ""))
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    device, taken = pick_device(pretrain.device), {}
    for count in (2, 2 + steps):
        own, checkpoint = _with_denoiser(pretrain, steps=count), folder / "rehearsal.safetensors"
        begun = time.perf_counter()
        denoiser.train_denoiser(few, views, tokenizer, own, checkpoint, device)
        taken[count] = time.perf_counter() - begun
        checkpoint.unlink()
    total = taken[2 + steps]
    return max(total - taken[2], total / 10) / steps  # on a toy the start can take longer than all steps


def _stage(name: str, arguments: argparse.Namespace) -> subprocess.Popen:
    """One part's training in a process of its own."""
    command = [sys.executable, "-m", "tools.on_gpu", "--stage", name, "--parameters", str(arguments.parameters)]
    return subprocess.Popen(command)


def _finish(process: subprocess.Popen, name: str) -> None:
    if process.wait():
        raise RuntimeError(f"The {name} could not be trained: see what its process said above")


def run(arguments: argparse.Namespace) -> None:
    """All stages, by the arguments of `main`; writes base and CLIP to the parameters' folders. Raises RuntimeError if a stage
    fails or no time is left for the denoiser, CorpusError if the vector sources are not there."""
    begun = time.perf_counter()

    def say(what: str) -> None:
        logger.info("%4.0f s  %s", time.perf_counter() - begun, what)

    pretrain = read_params(arguments.parameters, arguments.compile, arguments.processes)
    folder = Path(pretrain.checkpoints)
    drawings = nodes.render_corpus(pretrain)
    save_drawings(drawings, folder)
    tokenizer_folder = nodes.train_tokenizer(drawings, pretrain)
    say(f"{len(drawings.table)} drawings, {drawings.table.split.value_counts().to_dict()}")
    vae, clip = _stage("vae", arguments), _stage("clip", arguments)
    try:
        train = drawings.select(drawings.table.split == "train")
        rehearse(train, tokenizer_folder, pretrain, 1, folder)
        say("denoiser compiled")
        _finish(vae, "VAE")
        seconds = rehearse(train, tokenizer_folder, pretrain, _REHEARSED, folder)
        left = arguments.seconds - (time.perf_counter() - begun) - _RESERVE
        pretrain = _with_denoiser(pretrain, steps=int(left / seconds))
        if pretrain.denoiser.steps < pretrain.denoiser.warmup_steps:
            raise RuntimeError(
                f"Only {left:.0f} s are left for the denoiser, at {seconds:.2f} s a step: give it more --seconds"
            )
        say(f"VAE done; {seconds:.3f} s a step: {pretrain.denoiser.steps} steps")
        nodes.train_base(drawings, tokenizer_folder, str(folder / "vae"), pretrain)
        say(f"base in {pretrain.output}")
        _finish(clip, "CLIP")
        say(f"CLIP in {pretrain.clip_output}")
    finally:
        for process in (vae, clip):
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.on_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=900, help="for everything together")
    parser.add_argument("--parameters", type=Path, default=PARAMETERS)
    parser.add_argument("--processes", type=int, default=16, help="that render")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave the denoiser as it is")
    parser.add_argument("--stage", choices=["vae", "clip"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.backends.cudnn.benchmark = True  # few shapes, many steps
    if arguments.stage is None:
        run(arguments)
        return
    pretrain = read_params(arguments.parameters, arguments.compile, arguments.processes)
    drawings = load_drawings(Path(pretrain.checkpoints))
    if arguments.stage == "vae":
        nodes.train_vae(drawings, pretrain)
    else:
        nodes.train_clip(drawings, str(Path(pretrain.checkpoints) / "tokenizer"), pretrain)


if __name__ == "__main__":
    main()
