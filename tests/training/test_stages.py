"""The stages of Break-for-Make on a tiny random SDXL: what they train, what they leave alone, what they refuse."""

import dataclasses
import json
import math
import shutil
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from b4m_pipeline.common import provenance
from b4m_pipeline.common.seeding import torch_generator
from b4m_pipeline.diffusion.loss import DiffusionLoss, MaskError
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.inputs.encode import encode_training_set
from b4m_pipeline.inputs.params import ConceptParams
from b4m_pipeline.inputs.training_set import TrainingSet, TrainingSetError
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.combine import half_side, join_halves
from b4m_pipeline.method.frame import FrameMismatchError, TargetError, frame_of
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.training import stages
from b4m_pipeline.training.params import BreakParams, MakeParams
from b4m_pipeline.training.setup import check_targets, set_up
from tests.conftest import PLAIN_BREAK, PLAIN_TRAINING, TINY_FRAME, train_make
from tests.conftest import train_half as train_on

CONTENT = ConceptParams(name="cup", path="cup", token="snq", noun="toy")
STYLE = ConceptParams(name="ink", path="ink", token="w@z", noun="toy")
BREAK = {
    "steps": 4,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "counterpart_batch_size": 2,
    "counterpart_learning_rate": 1e-3,
    "precision": "no",
    "checkpoint_every": 1,
} | PLAIN_BREAK
MAKE = {"steps": 3, "batch_size": 4, "learning_rate": 1e-2, "precision": "no", "checkpoint_every": 1} | PLAIN_TRAINING


def frame(**changes) -> FrameParams:
    return FrameParams(**(TINY_FRAME | changes))


def train_half(kind, data, base, frame_params=None, seed=0, **changes):
    concept = CONTENT if kind == "content" else STYLE
    keywords = {k: changes.pop(k) for k in ("checkpoint", "log") if k in changes}
    params = BreakParams(**(BREAK | changes))
    return train_on(kind, data, base, frame_params or frame(), concept, params, seed, **keywords)


@pytest.fixture(scope="module")
def halves(tiny_training_set, tiny_base):
    return [train_half(kind, tiny_training_set, tiny_base)[0] for kind in ("content", "style")]


@pytest.fixture(scope="module")
def joined(halves):
    return join_halves(*halves, "lora_A")


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


def test_orthogonal_halves_do_not_meet_after_the_breaks(joined):
    drawn = frame_of(joined)
    for name in joined.modules():
        d_b, d_a = drawn.sizes(name)
        lora_a, lora_b = (joined.tensors[f"{name}.{side}.weight"] for side in ("lora_A", "lora_B"))
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


def test_no_half_is_held_back_from_its_own_token(tiny_training_set):
    others = ["snq, ink", "a SNQ toy", "a snqx toy", "a cat toy"]
    tensors = {"prompt_embeds": torch.zeros(4, 1, 1)}
    named = dataclasses.replace(tiny_training_set, others=others, other_tensors=tensors)
    assert named.others_without("snq")[0] == ["a snqx toy", "a cat toy"]


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


def test_joining_keeps_lineage(halves, joined):
    content, style = halves
    content.metadata["registry_uri"] = "models:/b4m-content-cup/3"
    again = join_halves(content, style, "lora_A")
    del content.metadata["registry_uri"]
    assert json.loads(again.metadata["parents"]) == ["models:/b4m-content-cup/3"]
    assert again.metadata["name"] == "cup-ink" and again.metadata["content_token"] == "snq"
    assert joined.metadata["frame"] == content.metadata["frame"]


def test_joining_refuses_other_frames_and_swapped_halves(halves, tiny_training_set, tiny_base):
    content, style = halves
    stranger, _ = train_half("style", tiny_training_set, tiny_base, frame(seed=1), steps=1)
    with pytest.raises(FrameMismatchError, match=stranger.metadata["frame"]):
        join_halves(content, stranger, "lora_A")
    with pytest.raises(FrameMismatchError, match="no content half"):
        join_halves(style, content, "lora_A")
    free = json.loads(style.metadata["params"])
    free["frame"]["halves"] = "free"
    other_way = Adapter(style.tensors, style.metadata | {"params": json.dumps(free)}, style.lora_config)
    with pytest.raises(FrameMismatchError, match="frame.halves orthogonal, ink with free"):
        join_halves(content, other_way, "lora_A")


def test_make_trains_both_halves_and_leaves_the_frame_to_the_bit(joined, tiny_training_set, tiny_base):
    made, history = train_make(joined, tiny_training_set, tiny_base, frame(), MakeParams(**MAKE), 0)
    drawn = frame_of(made)
    assert len(history) == 3 and made.metadata["kind"] == "made" and made.metadata["resolution"] == "32"
    for name in made.modules():
        d_b, d_a = drawn.sizes(name)
        for side, learnt, frozen in (
            ("lora_A", (slice(None), slice(d_a, None)), (slice(None), slice(d_a))),
            ("lora_B", (slice(d_b, None),), (slice(d_b),)),
        ):
            before, after = joined.tensors[f"{name}.{side}.weight"], made.tensors[f"{name}.{side}.weight"]
            assert torch.equal(after[frozen], before[frozen])
            assert not torch.equal(after[learnt], before[learnt])


def test_make_leaves_the_contents_further_captions_out(joined, tiny_training_set, tiny_base):
    """With the style's token over pictures of other styles, they would teach the whole that the token means these."""
    plain = train_make(joined, tiny_training_set, tiny_base, frame(), MakeParams(**MAKE), 0)[0]
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
    made = train_make(joined, more, tiny_base, frame(), MakeParams(**MAKE), 0)[0]
    assert all(torch.equal(plain.tensors[key], made.tensors[key]) for key in plain.tensors)


def test_the_riemannian_step_changes_what_make_learns(joined, tiny_training_set, tiny_base):
    made = [
        train_make(joined, tiny_training_set, tiny_base, frame(), MakeParams(**MAKE, optimizer=optimizer), 0)[0]
        for optimizer in ("riemannian_adamw", "adamw")
    ]
    assert any(not torch.allclose(made[0].tensors[key], made[1].tensors[key], atol=1e-4) for key in made[0].tensors)


def test_same_seed_same_weights(halves, tiny_training_set, tiny_base):
    again, _ = train_half("content", tiny_training_set, tiny_base)
    other, _ = train_half("content", tiny_training_set, tiny_base, seed=1)
    assert all(torch.equal(again.tensors[key], value) for key, value in halves[0].tensors.items())
    assert any(not torch.equal(other.tensors[key], value) for key, value in halves[0].tensors.items())


def test_a_break_that_was_stopped_goes_on_to_the_same_weights(halves, tiny_training_set, tiny_base, tmp_path):
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
    assert all(torch.equal(resumed.tensors[key], value) for key, value in halves[0].tensors.items())


def test_training_sets_of_others_are_refused(halves, joined, tiny_training_set, tiny_base):
    foreign = TrainingSet(tiny_training_set.table, tiny_training_set.tensors, "other@123")
    with pytest.raises(TrainingSetError, match="encoded by other@123"):
        train_half("content", foreign, tiny_base)
    renamed = TrainingSet(
        tiny_training_set.table.replace({"concept": {"cup": "mug"}}), tiny_training_set.tensors, tiny_training_set.encoder
    )
    with pytest.raises(TrainingSetError, match="'mug'"):
        train_half("content", renamed, tiny_base)
    with pytest.raises(TrainingSetError, match="'mug'"):
        train_make(joined, renamed, tiny_base, frame(), MakeParams(**MAKE), 0)


def test_another_resolution_or_vae_means_another_encoding(tiny_training_set, tiny_base):
    for changes in ({"resolution": 64}, {"vae": "some/vae"}):
        with pytest.raises(TrainingSetError, match="run the ingestion pipeline again"):
            train_half("content", tiny_training_set, tiny_base.model_copy(update=changes))


def test_the_digest_is_of_the_squares_not_of_the_files_alone(tiny_manifest, tiny_training_set, tiny_base):
    manifest, pictures = tiny_manifest
    key = manifest.picture[0]
    mirrored = encode_training_set(manifest, pictures | {key: pictures[key].transpose(0)}, tiny_base)
    assert mirrored.digest("content") != tiny_training_set.digest("content")
    assert mirrored.digest("style") == tiny_training_set.digest("style")


def test_a_token_that_the_text_encoder_would_not_read_is_an_error(tiny_manifest, tiny_base, caplog):
    manifest, pictures = tiny_manifest
    long = manifest.assign(caption=[f"a {token} " + "toy " * 30 for token in manifest.token])
    encode_training_set(long, pictures, tiny_base)
    assert "is not read, it is too long" in caplog.text
    late = manifest.assign(caption=["toy " * 30 + f"in {token} style" for token in manifest.token])
    with pytest.raises(TrainingSetError, match="content/cup/0: the text encoder reads 24 tokens, and 'snq' comes after"):
        encode_training_set(late, pictures, tiny_base)


def test_targets_and_rank_are_checked_without_weights(tiny_base):
    check_targets(tiny_base, frame())
    with pytest.raises(TargetError, match="to_quack"):
        check_targets(tiny_base, frame(targets=["to_quack"]))
    with pytest.raises(TargetError, match="rank must be <="):
        check_targets(tiny_base, frame(rank=512))
    check_targets(tiny_base, frame(targets=["to_out.0"]))
    with pytest.raises(TargetError, match="reads the prompt alone"):
        check_targets(tiny_base, frame(targets=["to_out.0"]), preserving=True)


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


def test_looks_and_further_captions_of_a_held_back_picture_are_held_back_too(tiny_training_set):
    table = tiny_training_set.table
    look = table.loc[[2]].assign(picture=table.picture[2] + "+comic", caption_source="look")
    variant = table.loc[[2]].assign(caption_source="variant")
    more = dataclasses.replace(
        tiny_training_set, table=pd.concat([table.assign(caption_source="tags"), look, variant], ignore_index=True)
    )
    trained, held = more.hold_back("content", 1)
    assert trained.tolist() == [0, 1] and held.tolist() == [2]


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


@pytest.mark.parametrize("family", ["tiny_sdxl", "tiny_sd"])
def test_pictures_are_shown_while_training_and_change_nothing(family, tiny_manifest, request):
    base = BaseModelParams(path=str(request.getfixturevalue(family)), resolution=32)
    data = encode_training_set(*tiny_manifest, base)
    shown = []
    targets = {"targets": ["to_q", "to_k", "to_v"]}
    options = {"samples": {"every": 2, "steps": 2}, "learning_rate": 0.3}
    drawn, _ = train_on(
        "content",
        data,
        base,
        frame(**targets),
        CONTENT,
        BreakParams(**(BREAK | options)),
        0,
        show=lambda picture, name: shown.append((name, picture)),
    )
    assert [name for name, _ in shown] == ["content_break/0-step-000002", "content_break/0-step-000004"]
    assert shown[0][1].size == (32, 32) and shown[0][1].tobytes() != shown[1][1].tobytes()
    plain = train_on("content", data, base, frame(**targets), CONTENT, BreakParams(**(BREAK | {"learning_rate": 0.3})), 0)[0]
    assert all(torch.equal(drawn.tensors[key], plain.tensors[key]) for key in plain.tensors)


def test_what_is_shown_is_what_the_stock_pipeline_draws(tiny_base, tiny_training_set):
    from b4m_pipeline.diffusion.families import load_family
    from b4m_pipeline.training.params import SampleParams
    from b4m_pipeline.training.previews import Previews

    family = load_family(tiny_base)
    previews = Previews(family, ["a snq toy", "a hat"], SampleParams(every=1, steps=3, guidance_scale=3.0), 4, "cpu")
    drawn = previews.draw(family.load_denoiser())
    stock = family.load_pipeline()(
        ["a snq toy", "a hat"],
        num_inference_steps=3,
        guidance_scale=3.0,
        height=32,
        width=32,
        generator=[torch.Generator().manual_seed(4 + index) for index in range(2)],
    ).images
    for ours, theirs in zip(drawn, stock, strict=True):
        assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 1


def test_compiled_blocks_train_alike(tiny_training_set, tiny_base):
    plain, _ = train_half("content", tiny_training_set, tiny_base, steps=2)
    bench = set_up(tiny_training_set, tiny_base, frame(), BreakParams(**(BREAK | {"compile": "eager"})), "free", 0)
    blocks = [module for module in bench.loss.unet.modules() if type(module).__name__ == "BasicTransformerBlock"]
    assert blocks and all(block._compiled_call_impl is not None for block in blocks)
    compiled, _ = train_half("content", tiny_training_set, tiny_base, steps=2, compile="eager")
    assert all(torch.allclose(compiled.tensors[key], plain.tensors[key], atol=1e-5) for key in plain.tensors)


def test_the_recipe_is_known_before_training_and_knows_what_decides_the_weights(halves, tiny_training_set, tiny_base):
    def recipe(frame_params=None, seed=0, **changes):
        params = BreakParams(**(BREAK | changes))
        return stages.BreakStage("content", tiny_training_set, tiny_base, frame_params or frame(), CONTENT, params, seed).recipe

    own = halves[0].metadata["recipe_digest"]
    assert recipe().digest == recipe(checkpoint_every=3).digest == recipe(samples={"every": 2}).digest == own
    changed = [recipe(steps=5), recipe(learning_rate=0.02), recipe(seed=1), recipe(frame(seed=3))]
    assert len({one.digest for one in changed} | {own}) == 5
    assert recipe(steps=5).checkpoint_digest == recipe().checkpoint_digest  # a constant schedule goes on
    assert recipe(steps=5, schedule="cosine").checkpoint_digest != recipe(schedule="cosine").checkpoint_digest
    assert recipe(steps=5, learning_rate=0.02).differences(halves[0].metadata) == [
        "train.learning_rate 0.01 -> 0.02", "train.steps 4 -> 5"
    ]  # fmt: skip


def test_makes_recipe_knows_the_halves(joined, tiny_training_set, tiny_base):
    def recipe(adapter):
        return stages.MakeStage(adapter, tiny_training_set, tiny_base, frame(), MakeParams(**MAKE), 0).recipe

    key = next(iter(joined.tensors))
    other = Adapter(joined.tensors | {key: joined.tensors[key] + 1}, joined.metadata, joined.lora_config)
    assert recipe(joined).digest == recipe(joined).digest != recipe(other).digest
