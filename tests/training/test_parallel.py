"""A training in several processes is the training of one: the same losses, one log, one checkpoint."""

import logging
import os
import sys
from pathlib import Path

import pytest
import torch

from b4m_pipeline.common.devices import DeviceError
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.loss import DiffusionLoss
from b4m_pipeline.inputs.params import ConceptParams
from b4m_pipeline.method.combine import join_halves
from b4m_pipeline.training import parallel
from b4m_pipeline.training.params import BreakParams, MakeParams
from b4m_pipeline.training.stages import BreakStage, MakeStage, TrainingIO
from tests.training.helpers import BREAK, CONTENT, MAKE, STYLE, frame

FORKS = pytest.mark.skipif(sys.platform != "linux", reason="the fast tests fork")


@pytest.fixture
def forked(monkeypatch) -> None:
    """Processes that need not import torch anew. With one thread a forked process has no pool of threads to miss."""
    own = parallel.multiprocessing.get_context
    monkeypatch.setattr(parallel.multiprocessing, "get_context", lambda way: own("fork"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def stage_of(kind: str, data, base, **changes) -> BreakStage:
    concept: ConceptParams = CONTENT if kind == "content" else STYLE
    return BreakStage(kind, data, base, frame(), concept, BreakParams(**BREAK | changes), 0)


def run(stage, checkpoint: Path | None = None):
    seen: list[tuple[int, float]] = []
    adapter, history = parallel.train(stage, TrainingIO(checkpoint, lambda entry, step: seen.append((step, len(entry)))))
    assert [step for step, _ in seen] == list(range(len(history)))
    return adapter, history


def require_same(one, two) -> None:
    for a, b in zip(one[1], two[1], strict=True):
        assert a.keys() == b.keys() and all(a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-6) for key in a)
    for name, tensor in one[0].tensors.items():
        assert torch.allclose(tensor, two[0].tensors[name], atol=1e-4), name
    told = [{key: value for key, value in each[0].metadata.items() if key not in ("created", "params")} for each in (one, two)]
    assert told[0] == told[1]


@FORKS
def test_two_processes_have_the_losses_of_one_and_go_on_from_its_checkpoint(
    tiny_training_set, tiny_base, tmp_path, forked
) -> None:
    before, about = dict(os.environ), ("content", tiny_training_set, tiny_base)
    one, file = run(stage_of(*about, schedule="constant")), tmp_path / "a.safetensors"
    run(stage_of(*about, schedule="constant", steps=2), file)
    two = run(stage_of(*about, schedule="constant", processes=2), file)
    require_same(one, two)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1 and dict(os.environ) == before
    assert not torch.distributed.is_initialized() and parallel.share() == (0, 1)


@FORKS
def test_make_is_shared_too(tiny_training_set, tiny_base, forked) -> None:
    halves = [stage_of(kind, tiny_training_set, tiny_base).train()[0] for kind in ("content", "style")]
    joined = join_halves(*halves, frame().content_side)
    made = []
    for processes in (1, 2):
        params = MakeParams(**MAKE | {"processes": processes})
        made.append(run(MakeStage(joined, tiny_training_set, tiny_base, frame(), params, 0)))
    require_same(*made)


@FORKS
@pytest.mark.parametrize("late", [False, True])
def test_a_process_that_dies_ends_the_training_with_one_error(tiny_training_set, tiny_base, forked, monkeypatch, late) -> None:
    def follow(stage, checkpoint, rank, world, port, ready) -> None:
        if late:
            ready.release()
            with parallel._group(rank, world, port, "cpu"):
                os._exit(3)
        os._exit(3)

    monkeypatch.setattr(parallel, "_follow", follow)
    with pytest.raises(parallel.ParallelError, match="content_break: one of 2 processes ended with exit code 3"):
        run(stage_of("content", tiny_training_set, tiny_base, processes=2))
    assert parallel.share() == (0, 1)


@pytest.mark.slow
def test_processes_are_started_where_nothing_can_be_forked(tiny_training_set, tiny_base) -> None:
    one = run(stage_of("style", tiny_training_set, tiny_base))
    require_same(one, run(stage_of("style", tiny_training_set, tiny_base, processes=2)))


@pytest.mark.parametrize("sizes", [None, [(4, 4), (4, 2), (4, 4), (2, 4), (4, 4), (4, 2)]])
def test_shares_of_a_batch_are_its_images_with_their_own_noise(tiny_training_set, tiny_base, sizes) -> None:
    family = load_family(tiny_base)
    denoiser = family.load_denoiser()
    tensors = {key: value[:6] for key, value in tiny_training_set.tensors.items()}
    if sizes:
        tensors["latents_size"] = torch.tensor(sizes)
        for key in ("latents_mean", "latents_std"):
            tensors[key] = tensors[key][..., :4, :4]
    rows = torch.arange(6)
    with torch.no_grad():
        whole, *parts = (
            DiffusionLoss(family, denoiser, tensors, share=share)(rows, torch.Generator().manual_seed(1))
            for share in ((0, 1), (0, 2), (1, 2))
        )
    assert [len(part) for part in parts] == [3, 3]
    assert torch.allclose(whole.sort().values, torch.cat(parts).sort().values, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"processes": 3, "device": "cpu"}, "content_break.batch_size is 2, and content_break.processes, which is 3"),
        ({"processes": 2, "counterpart_batch_size": 3, "device": "cpu"}, "content_break.counterpart_batch_size is 3"),
        ({"processes": 2, "device": "cuda"}, "and there are 1 GPUs here: set it to 1 or less"),
        ({"processes": 2, "device": "mps"}, "Apple's GPUs train in one process"),
    ],
)
def test_what_cannot_be_shared_is_said_before_the_training(monkeypatch, changes, said) -> None:
    monkeypatch.setattr(parallel, "pick_device", lambda device: device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DeviceError, match=said):
        parallel.check_processes("content_break", BreakParams(**BREAK | changes))


def test_one_process_is_no_group(caplog) -> None:
    with caplog.at_level(logging.ERROR):
        parallel.check_processes("make", MakeParams(**MAKE))
    assert parallel.share() == (0, 1) and not caplog.records
