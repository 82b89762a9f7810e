"""The stages of Break-for-Make on a tiny random SDXL: what they train, what they leave alone, what they refuse."""

import dataclasses
import json
import math
from functools import cache, partial

import pandas as pd
import pytest
import torch

from b4m_pipeline.common import provenance
from b4m_pipeline.diffusion.loss import DiffusionLoss
from b4m_pipeline.inputs.encode import encode_training_set
from b4m_pipeline.inputs.training_set import TrainingSet, TrainingSetError
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.combine import join_halves
from b4m_pipeline.method.frame import frame_of, half_side
from b4m_pipeline.training import stages
from b4m_pipeline.training.params import BreakParams, MakeParams
from tests.conftest import train_make
from tests.training.helpers import BREAK, CONTENT, MAKE, frame, train_half


@pytest.fixture(scope="module")
def tiny_made(tiny_joined, tiny_training_set, tiny_base):
    """Steps -> the adapter that make gives after as many, and its history."""
    return cache(
        lambda steps=MAKE["steps"]: train_make(
            tiny_joined, tiny_training_set, tiny_base, frame(), MakeParams(**MAKE | {"steps": steps}), 0
        )
    )


@pytest.mark.parametrize("content_side", ["lora_A", "lora_B"])
def test_each_kind_is_trained_in_its_own_side(tiny_training_set, tiny_base, content_side):
    params = frame(content_side=content_side)
    for kind in ("content", "style"):
        half, _ = train_half(kind, tiny_training_set, tiny_base, params)
        side = half_side(kind, content_side)
        assert (side == content_side) == (kind == "content")
        assert half.metadata["half"] == side
        drawn = frame_of(half)
        for name in half.modules():
            d_b, d_a = drawn.sizes(name)
            learnt_a = half.tensors[f"{name}.lora_A.weight"][:, d_a:]
            learnt_b = half.tensors[f"{name}.lora_B.weight"][d_b:]
            own, other = (learnt_a, learnt_b) if side == "lora_A" else (learnt_b, learnt_a)
            assert own.abs().max() > 1e-3 and other.abs().max() == 0


def test_concept_and_counterparts_touch_their_own_half_alone(tiny_training_set, tiny_base):
    """A counterpart's pictures must not change the concept's first step: the gradient across is exactly zero."""
    with_counterparts, _ = train_half("content", tiny_training_set, tiny_base, steps=1, one_pass=False)
    table = tiny_training_set.table
    alone = table[table.role.isin(["content"])].index.tolist()
    subset = TrainingSet(
        table.loc[alone].reset_index(drop=True),
        {key: value[alone] for key, value in tiny_training_set.tensors.items()},
        tiny_training_set.encoder,
    )
    without, _ = train_half("content", subset, tiny_base, steps=1)
    for key, tensor in without.tensors.items():
        assert torch.equal(tensor, with_counterparts.tensors[key])


@pytest.mark.parametrize("halves_kind", ["orthogonal", "free"])
def test_one_pass_for_concept_and_counterparts_trains_what_two_passes_do(tiny_training_set, tiny_base, halves_kind):
    keywords = {"frame_params": frame(halves=halves_kind), "steps": 4, "max_grad_norm": 1e9, "gradient_accumulation": 2}
    apart, apart_history = train_half("content", tiny_training_set, tiny_base, one_pass=False, **keywords)
    together, history = train_half("content", tiny_training_set, tiny_base, one_pass=True, **keywords)
    assert history[-1] == pytest.approx(apart_history[-1], rel=1e-3)
    for key, tensor in apart.tensors.items():
        assert torch.allclose(tensor, together.tensors[key], atol=2e-4), key


def test_one_pass_goes_through_the_unet_once_a_step(tiny_training_set, tiny_base, monkeypatch):
    seen, original = [], DiffusionLoss._through

    def counted(self, noisy):
        seen.append(len(noisy.rows))
        return original(self, noisy)

    monkeypatch.setattr(DiffusionLoss, "_through", counted)
    train_half("content", tiny_training_set, tiny_base, steps=2, batch_size=2, counterpart_batch_size=1)
    train_half("content", tiny_training_set, tiny_base, steps=2, batch_size=2, counterpart_batch_size=1, one_pass=False)
    assert seen == [3, 3, 2, 1, 2, 1]
    seen.clear()
    mixed = tiny_training_set.tensors["latents_mean"]
    sizes = torch.tensor([mixed.shape[-2:]] * len(mixed))
    mixed = dataclasses.replace(tiny_training_set, tensors=tiny_training_set.tensors | {"latents_size": sizes})
    train_half("content", mixed, tiny_base, steps=1, batch_size=2, counterpart_batch_size=1)
    assert seen == [2, 1]  # of several sizes


def test_counterparts_move_the_other_half_while_training(tiny_training_set, tiny_base):
    bench_losses = train_half("content", tiny_training_set, tiny_base)[1]
    assert {"loss_content", "loss_counterpart_style"} <= set(bench_losses[0])
    assert all(entry["grad_norm_counterpart_style"] > 0 for entry in bench_losses)


def test_orthogonal_halves_do_not_meet_after_the_breaks(tiny_joined):
    drawn = frame_of(tiny_joined)
    for name in tiny_joined.modules():
        d_b, d_a = drawn.sizes(name)
        lora_a, lora_b = (tiny_joined.tensors[f"{name}.{side}.weight"] for side in ("lora_A", "lora_B"))
        assert (lora_b[d_b:] @ lora_a[:, d_a:]).norm() <= 1e-5
        assert (lora_b[:d_b] @ lora_a[:, :d_a]).norm() <= 1e-5


def test_what_other_code_has_trained_is_not_gone_on_with(tiny_training_set, tiny_base, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    keywords = {"checkpoint": tmp_path / "content_break-cup.safetensors"}
    train_half("content", tiny_training_set, tiny_base, **keywords)
    train_half("content", tiny_training_set, tiny_base, **keywords)
    assert "Resuming at step 4 of 4" in caplog.text and "trained from the start" not in caplog.text
    caplog.clear()
    changed = provenance.recipe_modules() | {"diffusion/loss": "another"}
    monkeypatch.setattr(stages, "Recipe", partial(provenance.Recipe, code=changed))
    mended, _ = train_half("content", tiny_training_set, tiny_base, **keywords)
    assert "trained from the start" in caplog.text and "Resuming" not in caplog.text
    assert json.loads(mended.metadata["recipe_code"])["diffusion/loss"] == "another"


def test_make_trains_both_halves_and_leaves_the_frame_to_the_bit(tiny_joined, tiny_made):
    made, history = tiny_made()
    drawn = frame_of(made)
    assert len(history) == 3 and made.metadata["kind"] == "made" and made.metadata["resolution"] == "32"
    for name in made.modules():
        d_b, d_a = drawn.sizes(name)
        for side, learnt, frozen in (
            ("lora_A", (slice(None), slice(d_a, None)), (slice(None), slice(d_a))),
            ("lora_B", (slice(d_b, None),), (slice(d_b),)),
        ):
            before, after = tiny_joined.tensors[f"{name}.{side}.weight"], made.tensors[f"{name}.{side}.weight"]
            assert torch.equal(after[frozen], before[frozen])
            assert not torch.equal(after[learnt], before[learnt])


def test_make_leaves_the_contents_further_captions_out(tiny_joined, tiny_made, tiny_training_set, tiny_base):
    """With the style's token over pictures of other styles, they would teach the whole that the token means these."""
    plain = tiny_made()[0]
    content = tiny_training_set.rows("content").tolist()
    table, tensors = tiny_training_set.table, tiny_training_set.tensors
    more = dataclasses.replace(
        tiny_training_set,
        table=pd.concat(
            [table.assign(caption_source="sidecar"), table.loc[content].assign(caption="a w@z", caption_source="variant")],
            ignore_index=True,
        ),
        tensors={key: torch.cat([value, value[content] + 1]) for key, value in tensors.items()},
    )
    assert len(more.rows("content")) == 2 * len(content)
    made = train_make(tiny_joined, more, tiny_base, frame(), MakeParams(**MAKE), 0)[0]
    assert all(torch.equal(plain.tensors[key], made.tensors[key]) for key in plain.tensors)


def test_the_riemannian_step_changes_what_make_learns(tiny_joined, tiny_made, tiny_training_set, tiny_base):
    params = MakeParams(**MAKE)
    assert params.optimizer == "riemannian_adamw"
    plain = train_make(tiny_joined, tiny_training_set, tiny_base, frame(), params.model_copy(update={"optimizer": "adamw"}), 0)[
        0
    ]
    riemannian = tiny_made()[0]
    assert any(not torch.allclose(plain.tensors[key], riemannian.tensors[key], atol=1e-4) for key in plain.tensors)


def test_same_seed_same_weights(tiny_halves, tiny_training_set, tiny_base):
    again, _ = train_half("content", tiny_training_set, tiny_base)
    other, _ = train_half("content", tiny_training_set, tiny_base, seed=1)
    assert all(torch.equal(again.tensors[key], value) for key, value in tiny_halves[0].tensors.items())
    assert any(not torch.equal(other.tensors[key], value) for key, value in tiny_halves[0].tensors.items())


def test_a_break_that_was_stopped_goes_on_to_the_same_weights(tiny_halves, tiny_training_set, tiny_base, tmp_path):
    class Stop(Exception):
        pass

    def stop(entry, step):
        if step == 2:
            raise Stop

    checkpoint = tmp_path / "c.safetensors"
    with pytest.raises(Stop):
        train_half("content", tiny_training_set, tiny_base, checkpoint=checkpoint, log=stop)
    steps = []
    resumed, _ = train_half(
        "content", tiny_training_set, tiny_base, checkpoint=checkpoint, log=lambda entry, step: steps.append(step)
    )
    assert steps == [0, 1, 2, 3]
    assert all(torch.equal(resumed.tensors[key], value) for key, value in tiny_halves[0].tensors.items())


def test_training_sets_of_others_are_refused(tiny_halves, tiny_joined, tiny_training_set, tiny_base):
    foreign = TrainingSet(tiny_training_set.table, tiny_training_set.tensors, "other@123")
    with pytest.raises(TrainingSetError, match="encoded by other@123"):
        train_half("content", foreign, tiny_base)
    renamed = TrainingSet(
        tiny_training_set.table.replace({"concept": {"cup": "mug"}}), tiny_training_set.tensors, tiny_training_set.encoder
    )
    with pytest.raises(TrainingSetError, match="'mug'"):
        train_half("content", renamed, tiny_base)
    with pytest.raises(TrainingSetError, match="'mug'"):
        train_make(tiny_joined, renamed, tiny_base, frame(), MakeParams(**MAKE), 0)


def test_held_back_pictures_are_measured_and_not_trained_on(tiny_training_set, tiny_base):
    trained, held = tiny_training_set.hold_back("content", 1)
    assert trained.tolist() == [0, 1] and held.tolist() == [2]
    changed = {key: value.clone() for key, value in tiny_training_set.tensors.items()}
    changed["latents_mean"][2] += 5
    other = dataclasses.replace(tiny_training_set, tensors=changed)
    options = {"validation": {"pictures": 1, "every": 2, "timesteps": 3}}
    first, history = train_half("content", tiny_training_set, tiny_base, **options)
    second, others = train_half("content", other, tiny_base, **options)
    assert all(torch.equal(first.tensors[key], second.tensors[key]) for key in first.tensors)
    losses = [[entry["validation_loss"] for entry in entries if "validation_loss" in entry] for entries in (history, others)]
    assert len(losses[0]) == 2 and losses[0] != losses[1] and losses[0][0] != losses[0][1]
    with pytest.raises(TrainingSetError, match="validation.pictures is 3, and content has 3"):
        train_half("content", tiny_training_set, tiny_base, validation={"pictures": 3})


def test_all_stages_train_on_pictures_of_several_sizes(tiny_manifest, tiny_base):
    manifest, pictures = tiny_manifest
    wide = {key: picture.resize((48, 16)) for key, picture in list(pictures.items())[::3]}
    data = encode_training_set(manifest, {**pictures, **wide}, tiny_base)
    assert len(data.tensors["latents_size"].unique(dim=0)) == 2
    content, _ = train_half("content", data, tiny_base)
    style, _ = train_half("style", data, tiny_base)
    joined = join_halves(content, style, "lora_A")
    made, history = train_make(joined, data, tiny_base, frame(), MakeParams(**MAKE), 0)
    assert len(history) == 3 and all(math.isfinite(value) for entry in history for value in entry.values())
    assert any(not torch.equal(made.tensors[key], joined.tensors[key]) for key in made.tensors)


def test_the_recipe_is_known_before_training_and_knows_what_decides_the_weights(tiny_halves, tiny_training_set, tiny_base):
    def recipe(frame_params=None, seed=0, **changes):
        params = BreakParams(**(BREAK | changes))
        return stages.BreakStage("content", tiny_training_set, tiny_base, frame_params or frame(), CONTENT, params, seed).recipe

    own = tiny_halves[0].metadata["recipe_digest"]
    assert recipe().digest == recipe(checkpoint_every=3).digest == recipe(samples={"every": 2}).digest == own
    changed = [recipe(steps=5), recipe(learning_rate=0.02), recipe(seed=1), recipe(frame(seed=3))]
    assert len({one.digest for one in changed} | {own}) == 5
    assert recipe(steps=5).checkpoint_digest == recipe().checkpoint_digest  # a constant schedule goes on
    assert recipe(steps=5, schedule="cosine").checkpoint_digest != recipe(schedule="cosine").checkpoint_digest
    assert recipe(steps=5, learning_rate=0.02).differences(tiny_halves[0].metadata) == [
        "train.learning_rate 0.01 -> 0.02", "train.steps 4 -> 5"
    ]  # fmt: skip


class Keeps:
    """A guard that keeps one step."""

    def __init__(self, step: int, settings: str = "some"):
        self.step, self.settings, self.seen = step, {"guard": settings}, {}

    def choose(self, candidates):
        self.seen = candidates
        return self.step, {step: {"kept": 0.25} for step in candidates}


@pytest.mark.parametrize("step", [0, 2, 4])
def test_the_adapter_is_what_the_guard_keeps(tiny_joined, tiny_made, tiny_training_set, tiny_base, caplog, step):
    caplog.set_level("INFO", logger="b4m_pipeline")
    params = MakeParams(**MAKE | {"steps": 4, "keep": "best"})
    guard = Keeps(step)
    made, history = stages.MakeStage(tiny_joined, tiny_training_set, tiny_base, frame(), params, 0, guard).train()
    assert list(guard.seen) == [0, 2, 4] and len(history) == 4
    assert all(torch.equal(made.tensors[key], guard.seen[step].tensors[key]) for key in made.tensors)
    assert made.metadata["kind"] == "made" and made.metadata["kept_step"] == str(step)
    assert json.loads(made.metadata["kept_figures"]) == {str(at): {"kept": 0.25} for at in (0, 2, 4)}
    assert ("the halves are kept as they were joined" in caplog.text) == (step == 0)
    last = tiny_made(4)[0]
    assert all(torch.equal(last.tensors[key], guard.seen[4].tensors[key]) for key in last.tensors)


def test_the_guard_is_part_of_makes_recipe(tiny_joined, tiny_training_set, tiny_base, monkeypatch):
    params = MakeParams(**MAKE | {"keep": "best"})

    def recipe(guard):
        return stages.MakeStage(tiny_joined, tiny_training_set, tiny_base, frame(), params, 0, guard).recipe

    assert recipe(Keeps(0)).digest == recipe(Keeps(2)).digest != recipe(Keeps(0, "others")).digest
    assert "evaluation/guard" in recipe(Keeps(0)).code
    with pytest.raises(ValueError, match="best needs a guard"):
        recipe(None)
    with pytest.raises(ValueError, match="last takes none"):
        stages.MakeStage(tiny_joined, tiny_training_set, tiny_base, frame(), MakeParams(**MAKE), 0, Keeps(0))


def test_makes_recipe_knows_the_halves(tiny_joined, tiny_training_set, tiny_base):
    def recipe(adapter):
        return stages.MakeStage(adapter, tiny_training_set, tiny_base, frame(), MakeParams(**MAKE), 0).recipe

    key = next(iter(tiny_joined.tensors))
    other = Adapter(tiny_joined.tensors | {key: tiny_joined.tensors[key] + 1}, tiny_joined.metadata, tiny_joined.lora_config)
    assert recipe(tiny_joined).digest == recipe(tiny_joined).digest != recipe(other).digest
