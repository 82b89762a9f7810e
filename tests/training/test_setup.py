"""What every stage trains with."""

import dataclasses
import shutil

import pytest
import torch

from b4m_pipeline.common.seeding import torch_generator
from b4m_pipeline.diffusion.loss import MaskError
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.inputs.encode import encode_training_set
from b4m_pipeline.inputs.training_set import TrainingSetError
from b4m_pipeline.method.frame import TargetError
from b4m_pipeline.training.params import BreakParams
from b4m_pipeline.training.setup import check_targets, set_up
from tests.training.helpers import BREAK, frame, train_half


def test_another_resolution_or_vae_means_another_encoding(tiny_training_set, tiny_base):
    for changes in ({"resolution": 64}, {"vae": "some/vae"}):
        with pytest.raises(TrainingSetError, match="run the ingestion pipeline again"):
            train_half("content", tiny_training_set, tiny_base.model_copy(update=changes))


def test_the_recipe_knows_scheduler_and_encoders(tiny_manifest, tiny_sdxl, tmp_path):
    """A base whose UNet is the same and whose scheduler is not is another one to learn from."""
    mended = tmp_path / tiny_sdxl.name
    shutil.copytree(tiny_sdxl, mended)
    config = mended / "scheduler/scheduler_config.json"
    config.write_text(config.read_text().replace("v_prediction", "epsilon"))
    sets = [encode_training_set(*tiny_manifest, BaseModelParams(path=str(p), resolution=32)) for p in (tiny_sdxl, mended)]
    assert sets[0].digest("content") != sets[1].digest("content")
    with pytest.raises(TrainingSetError, match="run the ingestion pipeline again"):
        train_half("content", sets[0], BaseModelParams(path=str(mended), resolution=32))


def test_targets_and_rank_are_checked_without_weights(tiny_base):
    check_targets(tiny_base, frame())
    with pytest.raises(TargetError, match="to_quack"):
        check_targets(tiny_base, frame(targets=["to_quack"]))
    with pytest.raises(TargetError, match="rank must be <="):
        check_targets(tiny_base, frame(rank=512))
    check_targets(tiny_base, frame(targets=["to_out.0"]))
    with pytest.raises(TargetError, match="reads the prompt alone"):
        check_targets(tiny_base, frame(targets=["to_out.0"]), preserving=True)


def test_validation_is_the_same_for_the_same_weights(tiny_training_set, tiny_base):
    bench = set_up(tiny_training_set, tiny_base, frame(), BreakParams(**BREAK), "free", 0)
    rows = torch.tensor([0, 1, 4])
    measure = bench.validation(rows, BreakParams(**BREAK), 0)
    assert measure() == measure()
    at = (torch.arange(8) + 0.5) * 1000 / 8
    generator = torch_generator(0, "validation")
    each, times = rows.repeat_interleave(8), at.long().repeat(3)
    parts = []
    for part, steps in zip(each.split(8), times.split(8), strict=True):
        prediction, target, used = bench.loss.predict(part, generator, steps)
        assert torch.equal(used, steps)
        parts.append((prediction - target).square().flatten(1).mean(1))
    assert measure() == pytest.approx(float(torch.cat(parts).mean()), rel=1e-5)


def test_a_masked_loss_counts_where_the_mask_is_white(tiny_training_set, tiny_base):
    with pytest.raises(MaskError, match="no picture has a mask"):
        train_half("content", tiny_training_set, tiny_base, masked_loss=True)
    mask = torch.zeros(len(tiny_training_set.table), 1, 16, 16)
    mask[..., :8] = 1
    masked = dataclasses.replace(tiny_training_set, tensors=tiny_training_set.tensors | {"mask": mask})
    options = {"masked_loss": True, "mask_floor": 0.0}
    bench = set_up(masked, tiny_base, frame(), BreakParams(**(BREAK | options)), "free", 0)
    rows = torch.tensor([0, 1])
    prediction, target, _ = bench.loss.predict(rows, torch_generator(0, "x"))
    expected = (prediction - target)[..., :8].square().flatten(1).mean(1)
    assert torch.allclose(bench.loss(rows, torch_generator(0, "x")), expected, rtol=1e-5)
    unmasked, _ = train_half("content", masked, tiny_base)
    plain, _ = train_half("content", tiny_training_set, tiny_base)
    assert all(torch.equal(unmasked.tensors[key], plain.tensors[key]) for key in plain.tensors)  # off: not looked at


def test_compiled_blocks_train_alike(tiny_training_set, tiny_base):
    plain, _ = train_half("content", tiny_training_set, tiny_base, steps=2)
    bench = set_up(tiny_training_set, tiny_base, frame(), BreakParams(**(BREAK | {"compile": "eager"})), "free", 0)
    blocks = [module for module in bench.loss.unet.modules() if type(module).__name__ == "BasicTransformerBlock"]
    assert blocks and all(block._compiled_call_impl is not None for block in blocks)
    compiled, _ = train_half("content", tiny_training_set, tiny_base, steps=2, compile="eager")
    assert all(torch.allclose(compiled.tensors[key], plain.tensors[key], atol=1e-5) for key in plain.tensors)


def test_gradient_checkpointing_changes_memory_and_nothing_else(tiny_base, tiny_training_set):
    plain, _ = train_half("content", tiny_training_set, tiny_base)
    sparing, _ = train_half("content", tiny_training_set, tiny_base, gradient_checkpointing=True)
    for key, tensor in plain.tensors.items():
        assert torch.allclose(tensor, sparing.tensors[key], atol=1e-5)
