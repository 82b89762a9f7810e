"""What every stage trains with."""

import dataclasses
import shutil

import pytest
import torch

from b4m_pipeline.common.seeding import torch_generator
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.loss import MaskError
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.inputs.encode import encode_training_set
from b4m_pipeline.inputs.training_set import TrainingSetError
from b4m_pipeline.method.combine import join_halves, scale_halves
from b4m_pipeline.method.files import load_adapter, save_adapter
from b4m_pipeline.method.frame import TargetError, frame_of
from b4m_pipeline.training.params import BreakParams, MakeParams
from b4m_pipeline.training.setup import check_targets, make_frame, set_up
from tests.conftest import train_make
from tests.training.helpers import BREAK, MAKE, frame, train_half


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


def test_a_masked_loss_counts_where_the_mask_is_white(tiny_training_set, tiny_base, tiny_halves):
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
    assert all(torch.equal(unmasked.tensors[key], plain) for key, plain in tiny_halves[0].tensors.items())  # off: not looked at


@pytest.mark.slow
def test_compiled_blocks_train_alike(tiny_training_set, tiny_base):
    plain, _ = train_half("content", tiny_training_set, tiny_base, steps=2)
    bench = set_up(tiny_training_set, tiny_base, frame(), BreakParams(**(BREAK | {"compile": "eager"})), "free", 0)
    blocks = [module for module in bench.loss.denoiser.modules() if type(module).__name__ == "BasicTransformerBlock"]
    assert blocks and all(block._compiled_call_impl is not None for block in blocks)
    compiled, _ = train_half("content", tiny_training_set, tiny_base, steps=2, compile="eager")
    assert all(torch.allclose(compiled.tensors[key], plain.tensors[key], atol=1e-5) for key in plain.tensors)


def test_gradient_checkpointing_changes_memory_and_nothing_else(tiny_base, tiny_training_set, tiny_halves):
    sparing, _ = train_half("content", tiny_training_set, tiny_base, gradient_checkpointing=True)
    for key, tensor in tiny_halves[0].tensors.items():
        assert torch.allclose(tensor, sparing.tensors[key], atol=1e-5)


def test_nothing_of_the_base_model_is_trained_and_each_side_is_whole(tiny_training_set, tiny_base):
    setup = set_up(tiny_training_set, tiny_base, frame(), BreakParams(**BREAK), "orthogonal", 0)
    sides = [setup.side(side) for side in ("lora_A", "lora_B")]
    assert [len(side) for side in sides] == [len(setup.layers)] * 2 and setup.preservation is None and setup.previews is None
    own = {id(parameter) for side in sides for parameter in side}
    learnt = {id(parameter) for parameter in setup.loss.denoiser.parameters() if parameter.requires_grad}
    assert learnt == own and not setup.loss.denoiser.training
    assert setup.frame.fingerprint == make_frame(tiny_base, frame()).fingerprint  # known without weights
    assert make_frame(tiny_base, frame(seed=1)).fingerprint != setup.frame.fingerprint


def test_without_held_back_rows_nothing_is_measured_and_without_previews_nothing_drawn(tiny_training_set, tiny_base):
    setup = set_up(tiny_training_set, tiny_base, frame(), BreakParams(**BREAK), "free", 0)
    assert setup.validation(torch.tensor([], dtype=torch.long), BreakParams(**BREAK), 0) is None
    assert setup.drawing("content_break", lambda *given: None) is None


def test_precision_and_device_are_the_parameters(tiny_training_set, tiny_base):
    params = BreakParams(**BREAK | {"precision": "bf16"})
    setup = set_up(tiny_training_set, tiny_base, frame(), params, "free", 0)
    assert setup.loss.denoiser.conv_in.weight.dtype == torch.bfloat16 and setup.device == "cpu"
    assert {parameter.dtype for side in ("lora_A", "lora_B") for parameter in setup.side(side)} == {torch.float32}


def test_a_penalty_on_changed_prompts_has_its_weight(tiny_training_set, tiny_base):
    prompts, penalties = load_family(tiny_base).encode_prompts(["a cat", "a dog"]), []
    for weight in (0.5, 1.0):
        setup = set_up(tiny_training_set, tiny_base, frame(), BreakParams(**BREAK), "orthogonal", 0, (prompts, weight))
        assert float(setup.preservation().detach()) < 1e-6  # nothing is learnt yet
        with torch.no_grad():
            for parameter in setup.side("lora_A"):
                parameter.add_(0.1)
        penalties.append(float(setup.preservation().detach()))
    assert penalties[1] == pytest.approx(2 * penalties[0], rel=1e-4) and penalties[0] > 1e-5


KNOWN = {"template": "{article} {content} in {style} style", "contents": ["cat", "dog", "car"], "styles": ["ink", "oil"]}


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_a_frame_of_words_divides_what_reads_the_prompt_by_what_known_words_differ_in(
    family, tiny_manifest, tiny_training_set, tiny_base, tiny_sd
):
    base, data, own = tiny_base, tiny_training_set, frame(basis="words", words=KNOWN)
    if family == "sd15":
        base = BaseModelParams(path=str(tiny_sd), resolution=32)
        data = encode_training_set(*tiny_manifest, base)
        own = frame(basis="words", words=KNOWN, targets=["to_q", "to_k", "to_v", "to_out.0"])
    setup = set_up(data, base, own, BreakParams(**BREAK), "orthogonal", 0)
    read = {name for name in setup.layers if ".attn2.to_k" in name or ".attn2.to_v" in name}
    assert set(setup.frame.directions) == read | ({"add_embedding.linear_1"} if family == "sdxl" else set())
    for layer in setup.layers.values():  # exact at step 0
        lora_a, lora_b = layer.factors()
        assert (lora_b @ lora_a).norm() <= 1e-6
    again = set_up(data, base, own, BreakParams(**BREAK), "orthogonal", 0).frame
    first = next(iter(read))
    assert torch.equal(again.blocks(first).frozen_a, setup.frame.blocks(first).frozen_a)
    assert again.fingerprint == setup.frame.fingerprint == make_frame(base, own).fingerprint  # known without weights
    other_words = own.model_copy(update={"words": own.words.model_copy(update={"styles": ["ink", "wool"]})})
    blocks = frame(targets=own.targets)
    assert len({make_frame(base, each).fingerprint for each in (own, other_words, blocks)}) == 3


def test_halves_of_a_frame_of_words_train_join_and_are_made(tiny_training_set, tiny_base, tmp_path):
    own = frame(basis="words", words=KNOWN)
    content, style = (train_half(kind, tiny_training_set, tiny_base, own)[0] for kind in ("content", "style"))
    joined = load_adapter(save_adapter(join_halves(content, style, own.content_side), tmp_path))
    made, _ = train_make(joined, tiny_training_set, tiny_base, own, MakeParams(**MAKE), 0)
    drawn = frame_of(made)
    for name in drawn.directions:
        before, after = joined.tensors[f"{name}.lora_A.weight"], made.tensors[f"{name}.lora_A.weight"]
        assert torch.allclose(after - drawn.learnt_columns(name, after), drawn.blocks(name).frozen_a, atol=1e-5)
        assert not torch.equal(before, after)
    style_gone, content_alone = scale_halves(joined, style=0.0), content
    assert all(torch.allclose(style_gone.delta(n), content_alone.delta(n), atol=1e-5) for n in joined.modules())
