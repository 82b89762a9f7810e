"""What the method is compared with: each does what its paper says, on the same task."""

import pytest
import torch

from b4m_pipeline.benchmark import other_methods
from b4m_pipeline.benchmark.all_methods import METHODS
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.method.frame import TargetError
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.training.lora import train_lora
from b4m_pipeline.training.params import LoraParams
from tests.benchmark.helpers import require_whole, task
from tests.conftest import TINY_FRAME


@pytest.mark.parametrize("name", ["joint", "joint, equal parameters"])
def test_every_method_gives_an_adapter_of_the_same_layers(shared, name, tmp_path) -> None:
    require_whole(METHODS[name](shared), shared, tmp_path)


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


def test_a_stock_pipeline_draws_with_a_merge(shared, tiny_sdxl, tmp_path) -> None:
    from diffusers import StableDiffusionXLPipeline

    adapter = METHODS["sum"](shared)
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, use_safetensors=True)
    pipeline.load_lora_weights(save_adapter(adapter, tmp_path).parent)
    (name,) = pipeline.get_active_adapters()
    module = pipeline.unet.get_submodule(adapter.modules()[0])
    weight = module.scaling[name] * module.lora_B[name].weight @ module.lora_A[name].weight
    assert torch.allclose(weight, adapter.delta(adapter.modules()[0]), atol=1e-7)
