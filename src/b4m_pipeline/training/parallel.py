"""One training in several processes, on as many GPUs: each takes its share of every batch, and gradients are averaged.

The stage's own process is the first of them: it alone logs, draws, and writes checkpoints. The others are started for the
stage, compute the same steps and end with it. Whatever is drawn by lot is drawn for the whole batch in each process, so the
losses are those of one process with that batch.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import multiprocessing

from b4m_pipeline.common.devices import DeviceError, pick_device

if TYPE_CHECKING:
    from b4m_pipeline.method.adapter import Adapter
    from b4m_pipeline.training.params import TrainParams
    from b4m_pipeline.training.stages import History, Stage, TrainingIO

_PATIENCE = 10  # seconds for the other processes to end


_own_share = (0, 1)


class ParallelError(RuntimeError):
    """One of the processes of a training ended before the others."""


def share() -> tuple[int, int]:
    """This process's number among those of its training, and how many there are."""
    return _own_share


def check_processes(stage: str, params: "TrainParams") -> None:
    """Raise DeviceError, naming the parameter, if a stage cannot be trained in so many processes."""
    wanted = params.processes
    if wanted == 1:
        return
    device = pick_device(params.device)
    if device == "mps":
        raise DeviceError(f"{stage}.processes is {wanted}, and Apple's GPUs train in one process: set it to 1")
    if device == "cuda" and wanted > (there := torch.cuda.device_count()):
        raise DeviceError(f"{stage}.processes is {wanted}, and there are {there} GPUs here: set it to {there} or less")
    for name in ("batch_size", "counterpart_batch_size"):
        if (size := getattr(params, name, wanted)) % wanted:
            raise DeviceError(f"{stage}.{name} is {size}, and {stage}.processes, which is {wanted}, must divide it")


def train(stage: "Stage", io: "TrainingIO") -> "tuple[Adapter, History]":
    """The stage's result, trained in `params.processes` processes. Raises ParallelError if one of the others dies."""
    world = stage.params.processes
    if world == 1:
        return stage.train(io)
    check_processes(stage.name, stage.params)
    stage.recipe  # noqa: B018 - what is wrong with the input is said before anything starts
    context = multiprocessing.get_context("spawn")
    port, ready = _free_port(), context.Semaphore(0)
    others = [
        context.Process(target=_follow, args=(stage, io.checkpoint, rank, world, port, ready)) for rank in range(1, world)
    ]
    try:
        for other in others:
            other.start()
        for _ in others:  # a group waits for its members for half an hour, and does not ask whether they live
            while not ready.acquire(timeout=1):
                _require_alive(stage.name, others)
        with _group(0, world, port, pick_device(stage.params.device)):
            return stage.train(io)
    except RuntimeError as error:  # the group's, if another process is gone
        _require_alive(stage.name, others, error)
        raise
    finally:
        for other in others:
            other.join(_PATIENCE)
            if other.is_alive():
                other.kill()


def _require_alive(stage: str, others: list[Any], error: Exception | None = None) -> None:
    for other in others:
        if other.exitcode:
            raise ParallelError(
                f"{stage}: one of {len(others) + 1} processes ended with exit code {other.exitcode}, see what it said above. "
                "The same command goes on from the last checkpoint"
            ) from error


def _follow(stage: "Stage", checkpoint: Any, rank: int, world: int, port: int, ready: Any) -> None:
    """What the other processes do: train as the first does, and keep nothing."""
    from b4m_pipeline.training.stages import TrainingIO

    device = pick_device(stage.params.device)
    if device == "cuda":
        torch.cuda.set_device(rank)
    ready.release()
    with _group(rank, world, port, device):
        stage.train(TrainingIO(checkpoint))


@contextmanager
def _group(rank: int, world: int, port: int, device: str) -> Iterator[None]:
    """The group of processes on this machine, and the surroundings in which accelerate finds it."""
    global _own_share
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    before, threads = dict(os.environ), torch.get_num_threads()
    os.environ.update({key: str(value) for key, value in own.items()} | {"MASTER_ADDR": "127.0.0.1"})
    torch.set_num_threads(max(1, threads // world))
    _own_share = rank, world
    try:
        torch.distributed.init_process_group("nccl" if device == "cuda" else "gloo", rank=rank, world_size=world)
        yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        torch.set_num_threads(threads)
        _own_share = 0, 1
        os.environ.clear()
        os.environ.update(before)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
