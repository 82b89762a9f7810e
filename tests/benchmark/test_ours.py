"""Ours and its ablations: each leaves out what it says."""

from collections.abc import Callable
from functools import cache

import pandas as pd
import pytest
import torch

from b4m_pipeline.benchmark import ours
from b4m_pipeline.benchmark.all_methods import METHODS
from b4m_pipeline.benchmark.task import Sources
from b4m_pipeline.inputs.params import ConceptParams
from b4m_pipeline.inputs.prepare import Prepared
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.training import stages
from b4m_pipeline.training.params import BreakParams, MakeParams
from b4m_pipeline.training.stages import MakeStage
from tests.benchmark.helpers import BREAK, EVALUATION, require_whole, task
from tests.conftest import TINY_FRAME, captioning_params, ingestion_params


def test_ablations_leave_out_what_they_say(full_training_set) -> None:
    def sources(data) -> dict[str, int]:
        return data.table["caption_source"].value_counts().to_dict()

    def without(**parts):
        return ours._training_set(full_training_set, ours.Variant(**parts))

    given = len(full_training_set.table) - 4
    assert sources(full_training_set) == {"sidecar": given, "look": 1, "variant": 3}
    assert sources(without(looks=False)) == {"sidecar": given, "variant": 2}  # the look's caption goes with it
    assert sources(without(variants=False)) == {"sidecar": given, "look": 1}
    assert len(without(looks=False).tensors["latents_mean"]) == given + 2


def test_equal_parameters_are_equal(shared) -> None:
    """Counted on the adapters themselves; rounded up in the competitor's favour by less than one rank."""
    rank = ours.equal_parameters(shared)
    half = METHODS["ours, halves joined"](shared)
    layers = [
        (half.tensors[f"{m}.lora_B.weight"].shape[0], half.tensors[f"{m}.lora_A.weight"].shape[1]) for m in half.modules()
    ]
    learnt = sum(shared.frame.rank // 2 * ((m - m // 2) + (n - n // 2)) for m, n in layers)
    one_rank = sum(m + n for m, n in layers)
    assert learnt <= rank * one_rank < learnt + one_rank


OURS = [name for name in METHODS if name.startswith("ours")]


@pytest.fixture(scope="module")
def made(shared) -> Callable[[str], Adapter]:
    """A method's adapter, which is trained once."""
    return cache(lambda name: METHODS[name](shared))


OFTEN = ("ours", "ours, halves joined", "ours, free halves", "ours, the paper's data")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in OFTEN else pytest.mark.slow) for name in OURS])
def test_every_method_gives_an_adapter_of_the_same_layers(shared, made, name, tmp_path) -> None:
    require_whole(made(name), shared, tmp_path)


@pytest.mark.slow
def test_ablations_differ_from_ours(made) -> None:
    plain = made("ours")
    for name in OURS:
        other = made(name)
        same = name in ("ours", "ours, make to its end") or "rehearsal" in name  # this task's make has neither
        assert same == all(torch.equal(tensor, plain.tensors[key]) for key, tensor in other.tensors.items()), name


def test_make_rehearses_and_is_guarded_as_its_parameters_say(
    tiny_training_set, tiny_manifest, tiny_base, tmp_path, monkeypatch
):
    seen = []

    class Seen(MakeStage):
        def __post_init__(self) -> None:
            super().__post_init__()
            seen.append((self.training_set.has("union"), self.guard is not None))

        def train(self, io=None):
            return self.reconstructed, []

    monkeypatch.setattr(ours, "MakeStage", Seen)
    manifest, pictures = tiny_manifest
    given = task(tiny_training_set, tiny_base, tmp_path)
    drawn = {"images": 3, "steps": 1, "folder": str(tmp_path / "drawn")}
    given.make = MakeParams(**given.make.model_dump() | {"keep": "best", "rehearsal": drawn})
    with pytest.raises(ValueError, match="need the pair's pictures"):
        METHODS["ours"](given)
    prepared = Prepared(manifest.assign(caption_source="sidecar"), pictures, pd.DataFrame())
    given.sources = Sources(prepared, ingestion_params(), captioning_params(), EVALUATION)
    for name in ("ours", "ours, no rehearsal", "ours, make to its end"):
        METHODS[name](given)
    assert seen == [(True, True), (False, True), (True, False)]


def test_leaking_gradients_reach_the_other_half_as_in_the_released_code(full_training_set, tiny_base) -> None:
    """Of one step's gradients: each half has that of both losses, where exact routing gives it its own loss's alone."""

    def gradients(stage_class) -> dict[str, list[torch.Tensor]]:
        params = BreakParams(**BREAK | {"steps": 1, "max_grad_norm": 1e9})
        concept = ConceptParams(name="cup", path="cup", token="snq")
        stage = stage_class("content", full_training_set, tiny_base, FrameParams(**TINY_FRAME), concept, params, 0)
        seen, original = {}, stages.fit

        def look(loss, objectives, params, **keys):
            grab = lambda: seen.update({o.name: [p.grad.clone() for p in o.parameters] for o in objectives})  # noqa: E731
            return original(loss, objectives, params, **keys | {"precondition": grab})

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stages, "fit", look)
            stage.train()
        return seen

    exact, leaking = gradients(stages.BreakStage), gradients(ours.LeakingBreakStage)
    for name in ("content", "counterpart_style"):
        assert any(not torch.allclose(a, b, atol=1e-7) for a, b in zip(exact[name], leaking[name], strict=True))
