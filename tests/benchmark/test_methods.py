"""What the method is compared with: each does what its paper says, on the same task."""

import pandas as pd
import pytest
import torch

from b4m_pipeline.benchmark import other_methods, ours
from b4m_pipeline.benchmark.methods import METHODS
from b4m_pipeline.benchmark.params import CompetitorParams
from b4m_pipeline.benchmark.shelf import Shelf
from b4m_pipeline.benchmark.task import Task
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.inputs.params import ConceptParams
from b4m_pipeline.inputs.training_set import TrainingSet
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.method.frame import TargetError
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.training import stages
from b4m_pipeline.training.lora import train_lora
from b4m_pipeline.training.params import BreakParams, LoraParams, MakeParams
from tests.conftest import PLAIN_BREAK, PLAIN_TRAINING, TINY_FRAME

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_embedding.linear_2"]
BREAK = {
    "steps": 3,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "counterpart_batch_size": 1,
    "counterpart_learning_rate": 1e-3,
    "precision": "no",
} | PLAIN_BREAK
COMPETITORS = {
    "learning_rate": 1e-2,
    "joint_learning_rate": 1e-2,
    "orthogonal_learning_rate": 1e-2,
    "density": 0.5,
    "np_strength": 0.5,
    "zip_steps": 100,
    "zip_learning_rate": 0.01,
    "zip_overlap_weight": 0.01,
}


def task(training_set, base, folder) -> Task:
    return Task(
        training_set,
        base,
        FrameParams(**TINY_FRAME | {"targets": TARGETS}),
        ConceptParams(name="cup", path="cup", token="snq"),
        ConceptParams(name="ink", path="ink", token="w@z"),
        BreakParams(**BREAK),
        BreakParams(**BREAK | {"steps": 5}),
        MakeParams(steps=2, batch_size=2, learning_rate=1e-2, precision="no", **PLAIN_TRAINING),
        CompetitorParams(**COMPETITORS | {"zip_steps": 8, "zip_learning_rate": 0.05}),
        seed=0,
        shelf=Shelf(folder),
    )


@pytest.fixture(scope="module")
def full_training_set(tiny_training_set, tiny_base):
    """The tiny set with all that a run adds: a look of the content, further captions, prompts to preserve."""
    plain = tiny_training_set
    content, style = (plain.rows(role).tolist()[:1] for role in ("content", "style"))
    table = plain.table.assign(caption_source="sidecar")
    look = table.loc[content].assign(picture="content/cup/0+comic", caption_source="look")
    variants = pd.concat([table.loc[content], look, table.loc[style]]).assign(caption_source="variant")
    added = [*content, *content, *content, *style]
    tensors = {key: torch.cat([value, value[added] + 0.3]) for key, value in plain.tensors.items()}
    others = ["a cat toy in oil style", "a snq toy in oil style", "a cat toy in w@z style"]
    encoded = load_family(tiny_base).encode_prompts(others)
    return TrainingSet(pd.concat([table, look, variants], ignore_index=True), tensors, plain.encoder, others, encoded)


@pytest.fixture(scope="module")
def shared(full_training_set, tiny_base, tmp_path_factory) -> Task:
    """One task for all tests: its trainings are done once."""
    made = task(full_training_set, tiny_base, tmp_path_factory.mktemp("shelf"))
    quiet = {"preservation_weight": 1.0}
    made.content_break, made.style_break = (own.model_copy(update=quiet) for own in (made.content_break, made.style_break))
    return made


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


def test_everyone_sees_as_many_pictures(shared) -> None:
    """Ours: 3 x (2 + 1), 5 x (2 + 1) in the breaks, 2 x 2 in make."""
    content, style = (shared.budget(kind) for kind in ("content", "style"))
    assert content.steps * content.batch_size + style.steps * style.batch_size == pytest.approx(9 + 15 + 4, abs=2)


def test_the_sum_is_the_sum_of_both(shared) -> None:
    merged, content, style = METHODS["sum"](shared), shared.lora("content"), shared.lora("style")
    for module in content.modules():
        assert torch.allclose(merged.delta(module), content.delta(module) + style.delta(module), atol=1e-6)


@pytest.mark.parametrize("name", ["TIES", "DARE", "SVD"])
def test_merges_keep_rank_and_some_of_both(shared, name) -> None:
    merged, content, style = METHODS[name](shared), shared.lora("content"), shared.lora("style")
    assert merged.rank == content.rank
    for part in (content, style):
        alike = [torch.cosine_similarity(merged.delta(m).flatten(), part.delta(m).flatten(), dim=0) for m in part.modules()]
        assert torch.stack(alike).mean() > 0.2
    if name == "SVD":  # the best approximation of the sum at this rank
        module = content.modules()[0]
        singular = torch.linalg.svdvals(content.delta(module) + style.delta(module))
        error = torch.linalg.norm(merged.delta(module) - content.delta(module) - style.delta(module))
        assert float(error) == pytest.approx(float(singular[merged.rank :].square().sum().sqrt()), abs=1e-6)


def test_np_lora_takes_content_off_styles_row_space(shared) -> None:
    content, style, merged = shared.lora("content"), shared.lora("style"), METHODS["NP-LoRA"](shared)
    for module in content.modules():
        rest = merged.delta(module) - style.delta(module)  # content's part
        rows = torch.linalg.qr(style.tensors[f"{module}.lora_A.weight"].T).Q  # (in, r)
        kept = 1 - 0.5 / 1.5
        assert torch.allclose(rest @ rows, kept * content.delta(module) @ rows, atol=1e-6)
        off = torch.eye(rows.shape[0]) - rows @ rows.T
        assert torch.allclose(rest @ off, content.delta(module) @ off, atol=1e-6)


def test_orthogonal_adaptation_keeps_the_concepts_rows_apart(shared) -> None:
    merged, rank = METHODS["Orthogonal Adaptation"](shared), shared.frame.rank
    for module in merged.modules():
        lora_a = merged.tensors[f"{module}.lora_A.weight"]  # (2 r, in): content's rows, then style's
        assert torch.allclose(lora_a @ lora_a.T, torch.eye(2 * rank), atol=1e-5)
        assert merged.tensors[f"{module}.lora_B.weight"].abs().max() > 0


def test_orthogonal_adaptation_takes_the_rank_that_two_concepts_have_room_for(tiny_training_set, tiny_base, tmp_path) -> None:
    narrow = task(tiny_training_set, tiny_base, tmp_path)
    narrow.frame = FrameParams(**TINY_FRAME | {"targets": ["to_q"], "rank": 64, "alpha": 64})
    merged = METHODS["Orthogonal Adaptation"](narrow)
    narrowest = min(tensor.shape[1] for key, tensor in merged.tensors.items() if ".lora_A." in key)
    assert merged.rank == narrowest // 2 * 2 < 128 and merged.scaling == 1
    for module in merged.modules():
        lora_a = merged.tensors[f"{module}.lora_A.weight"]
        assert torch.allclose(lora_a @ lora_a.T, torch.eye(merged.rank), atol=1e-5)


def test_b_lora_keeps_each_concepts_block_of_a_training_of_both(shared, monkeypatch) -> None:
    merged = METHODS["B-LoRA"](shared)
    blocks = [f"up_blocks.0.attentions.{index}." for index in (0, 1)]
    assert {tuple(module.startswith(block) for block in blocks) for module in merged.modules()} == {
        (True, False),
        (False, True),
    }
    assert all(".attn" in module for module in merged.modules())
    params = shared.as_lora(shared.budget("style").model_dump() | {"learning_rate": shared.competitors.learning_rate})
    both = LoraParams(**params.model_dump() | {"targets": merged.modules()})
    style, _ = train_lora("style", shared.training_set, ["style"], shared.base_model, both, shared.seed)
    for key, value in merged.tensors.items():
        if key.startswith(blocks[1]):
            assert torch.allclose(value, style.tensors[key], atol=1e-6)
        elif ".lora_B." in key:
            assert not torch.allclose(value, style.tensors[key], atol=1e-6)
    monkeypatch.setitem(other_methods.B_LORA_BLOCKS, "style", "up_blocks.0.attentions.7")
    with pytest.raises(TargetError, match="attentions.7"):
        METHODS["B-LoRA"](shared)


def test_zip_lora_scales_columns_and_both_parts(shared) -> None:
    content, style, merged = shared.lora("content"), shared.lora("style"), METHODS["ZipLoRA"](shared)
    rank, moved = content.rank, []
    for module in content.modules():
        for part, rows in ((content, slice(0, rank)), (style, slice(rank, 2 * rank))):
            own = part.tensors[f"{module}.lora_A.weight"]
            scaled = merged.tensors[f"{module}.lora_A.weight"][rows]
            factors = (scaled * own).sum(0) / own.square().sum(0)
            assert torch.allclose(scaled, factors * own, atol=1e-6)  # one factor a column
            moved.append((factors - 1).abs().max())
    assert torch.stack(moved).max() > 1e-3


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


@pytest.mark.parametrize("name", [*OURS, "joint", "joint, equal parameters"])
def test_every_method_gives_an_adapter_of_the_same_layers(shared, name, tmp_path) -> None:
    adapter = METHODS[name](shared)
    assert adapter.modules() == shared.lora("content").modules()
    assert all(torch.isfinite(tensor).all() for tensor in adapter.tensors.values())
    assert any(adapter.delta(module).abs().max() > 0 for module in adapter.modules())
    save_adapter(adapter, tmp_path)


def test_ablations_differ_from_ours(shared) -> None:
    plain = METHODS["ours"](shared)
    for name in OURS:
        other = METHODS[name](shared)
        same = name == "ours"
        assert same == all(torch.equal(tensor, plain.tensors[key]) for key, tensor in other.tensors.items()), name


def test_base_has_no_adapter(shared) -> None:
    assert METHODS["base"](shared) is None


def test_a_stock_pipeline_draws_with_a_merge(shared, tiny_sdxl, tmp_path) -> None:
    from diffusers import StableDiffusionXLPipeline

    adapter = METHODS["sum"](shared)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, use_safetensors=True)
    pipeline.load_lora_weights(save_adapter(adapter, tmp_path).parent)
    (name,) = pipeline.get_active_adapters()
    module = pipeline.unet.get_submodule(adapter.modules()[0])
    weight = module.scaling[name] * module.lora_B[name].weight @ module.lora_A[name].weight
    assert torch.allclose(weight, adapter.delta(adapter.modules()[0]), atol=1e-7)


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
