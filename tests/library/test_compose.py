"""Two LoRAs from anywhere become one: what it says of itself, and what cannot be put together."""

import dataclasses
import json

import mlflow
import pytest
import torch
from safetensors.torch import save_file

from b4m_pipeline.datasets.training_set import TrainingSetDataset
from b4m_pipeline.diffusion.params import GenerateParams
from b4m_pipeline.diffusion.sampling import GenerationError, base_of, generate
from b4m_pipeline.inputs.training_set import TrainingSetError
from b4m_pipeline.library.compose import ComposeError, compose, fetch_part, prompts_of
from b4m_pipeline.library.params import ComposeParams
from b4m_pipeline.method.adapter import RECIPE_KEY, Adapter, AdapterError, example_prompt
from b4m_pipeline.method.combine import scale_halves
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.method.frame import FrameMismatchError
from b4m_pipeline.method.merge import delta
from b4m_pipeline.registry.adapters import register_adapter
from b4m_pipeline.registry.exports import to_kohya
from b4m_pipeline.registry.serving import predict_signature
from b4m_pipeline.training.params import MakeParams
from tests.training.helpers import MAKE

TRAIN = MakeParams(**MAKE)


@pytest.fixture
def halves(tiny_halves, tmp_path):
    """Their folders, and a file of another program."""
    for half in tiny_halves:
        save_adapter(half, tmp_path / half.metadata["kind"])
    save_file(to_kohya(tiny_halves[1], torch.float32), tmp_path / "foreign.safetensors")
    return tmp_path


def params(folder, methods="sum", content="content", style="style", **changes) -> ComposeParams:
    named = {"content": str(folder / content), "style": str(folder / style)}
    return ComposeParams(**named | {"methods": methods} | changes)


def composed(given: ComposeParams, base) -> dict[str, Adapter]:
    return compose(given, base, "lora_A", TRAIN, 0)[2]


def test_every_arithmetic_merge_of_two_halves(halves, tiny_halves, tiny_joined, tiny_base) -> None:
    made = composed(params(halves, "np halves sum ties dare svd"), tiny_base)
    assert list(made) == ["np", "halves", "sum", "ties", "dare", "svd"]
    assert all(torch.equal(made["halves"].tensors[key], tensor) for key, tensor in tiny_joined.tensors.items())
    for module in tiny_joined.modules():
        assert torch.allclose(delta(made["sum"], module), sum(delta(half, module) for half in tiny_halves), atol=1e-6)
    for method in ("sum", "ties", "dare", "svd", "np"):
        about = made[method].metadata
        assert (about["kind"], about["name"], about["method"]) == ("merged", "cup-ink", method)
        assert example_prompt(about) == "a snq toy in w@z style" and base_of(made[method]) == base_of(tiny_joined)


def test_a_merge_is_registered_with_its_parents_and_drawn_with(halves, tiny_base, tracking) -> None:
    content = register_adapter(halves / "content")["uri"]
    given = params(
        halves, "ties", style="foreign.safetensors", merge={"content_weight": 0.8, "density": 0.7}, prompts=["a toy"]
    )
    merged = composed(given.model_copy(update={"content": content}), tiny_base)["ties"]
    assert json.loads(merged.metadata["params"])["merge"] == {
        "method": "ties",
        "content_weight": 0.8,
        "style_weight": 1.0,
        "density": 0.7,
    }
    assert merged.metadata["architecture"] == "other" and "created" in merged.metadata  # as of its content
    first, second = json.loads(merged.metadata["parents"])
    assert first == content and second.startswith("foreign.safetensors, sha256 ")
    save_adapter(merged, halves / "merged")
    assert register_adapter(halves / "merged")["name"] == "b4m-merged-cup-foreign"
    version = tracking.get_model_version("b4m-merged-cup-foreign", "1")
    assert "merged by ties" in version.description and version.tags["content_weight"] == "0.8"
    served = mlflow.pyfunc.load_model("models:/b4m-merged-cup-foreign/1")
    assert len(served.predict({"prompt": ["a toy", "a hat"]}, params={"num_inference_steps": 1})) == 2
    settings = GenerateParams(adapter="x", prompts=None, images_per_prompt=1, steps=1)
    (image,) = generate(merged, tiny_base, settings, 0).values()
    assert '"prompt": "a toy"' in image.info["b4m"]


def test_a_merge_has_no_scales_of_its_own(halves, tiny_base) -> None:
    merged = composed(params(halves), tiny_base)["sum"]
    assert scale_halves(merged) is merged
    with pytest.raises(FrameMismatchError, match=r"is a merge and has no halves.*compose\.merge\.content_weight"):
        generate(merged, tiny_base, GenerateParams(adapter="x", prompts=None, style_scale=0.5), 0)
    assert {"content_scale", "style_scale"} & {
        own.name for own in predict_signature(merged.metadata, {}).params.params
    } == set()


def test_weights_scale_joined_halves_too(halves, tiny_joined, tiny_base) -> None:
    plain = composed(params(halves, "halves"), tiny_base)["halves"]
    made = composed(params(halves, "halves", merge={"style_weight": 0.5}), tiny_base)["halves"]
    wanted = scale_halves(tiny_joined, 1.0, 0.5)
    assert all(torch.equal(made.tensors[key], tensor) for key, tensor in wanted.tensors.items())
    assert made.metadata[RECIPE_KEY] != plain.metadata[RECIPE_KEY] == tiny_joined.metadata[RECIPE_KEY]


def test_zip_learns_on_the_ingested_pictures(halves, tiny_base, tiny_training_set, tmp_path) -> None:
    settings = {"steps": 2, "training_set": str(tmp_path / "set.safetensors")}
    with pytest.raises(ComposeError, match=r"no training set at .*set\.safetensors: run the pipeline ingestion"):
        composed(params(halves, "zip", zip=settings), tiny_base)
    data = TrainingSetDataset(filepath=settings["training_set"])
    data.save(tiny_training_set)
    made = composed(params(halves, "zip", zip=settings), tiny_base)["zip"]
    assert made.rank == 8 and made.metadata["method"] == "zip"
    assert json.loads(made.metadata["params"])["merge"]["steps"] == 2
    other = tiny_training_set.table.replace({"concept": {"cup": "jug"}})
    data.save(dataclasses.replace(tiny_training_set, table=other))
    with pytest.raises(TrainingSetError, match="'jug'.* 'cup'"):
        composed(params(halves, "zip", zip=settings), tiny_base)
    (tmp_path / "set.safetensors").write_bytes(b"nothing")
    with pytest.raises(ComposeError, match="damaged"):
        composed(params(halves, "zip", zip=settings), tiny_base)


def test_loras_of_two_base_models_are_refused_with_both_named(halves, tiny_halves, tiny_base, tmp_path) -> None:
    about = {"kind": "merged", "frame": "none", "frame_config": '{"base_model": "SDXL@0123"}'}
    about |= {"content_name": "cup", "style_name": "ink"}
    stranger = dataclasses.replace(tiny_halves[1], metadata=tiny_halves[1].metadata | about)
    save_adapter(stranger, tmp_path / "stranger")
    with pytest.raises(ComposeError, match=r"of the base model tiny_sdxl\d@\w+, .* one of SDXL@0123"):
        composed(params(halves, style="stranger"), tiny_base)
    with pytest.raises(GenerationError, match=r"of the base model SDXL@0123, not of tiny_sdxl"):
        composed(params(halves, content="stranger", style="stranger"), tiny_base)
    with pytest.raises(GenerationError, match=r"of the base model SDXL@0123"):
        composed(params(halves, content="foreign.safetensors", style="stranger"), tiny_base)


def test_layers_that_are_not_the_bases_are_refused(halves, tiny_sd, tiny_base) -> None:
    sd = tiny_base.model_copy(update={"path": str(tiny_sd)})
    with pytest.raises(AdapterError, match="foreign.safetensors does not fit the base model"):
        composed(params(halves, content="foreign.safetensors", style="foreign.safetensors"), sd)


@pytest.mark.parametrize(
    ("about", "said"),
    [({"name": "../../x"}, "name: must be letters"), ({"frame_config": "["}, "frame_config: invalid JSON"),
     ({"noun": 3}, "'noun' is no text"), ({"frame_config": "[]"}, "frame_config: "), ({"code_version": ""}, "code_version: ")],
    ids=str,
)  # fmt: skip
def test_what_a_file_says_of_itself_is_not_believed(halves, tiny_halves, tiny_base, about, said) -> None:
    save_adapter(dataclasses.replace(tiny_halves[0], metadata=tiny_halves[0].metadata | about), halves / "evil")
    with pytest.raises(AdapterError, match=said):
        fetch_part(str(halves / "evil"), tiny_base)


def test_prompts_are_the_loras_own_or_named(halves, tiny_base) -> None:
    known = composed(params(halves), tiny_base)["sum"].metadata
    assert prompts_of(params(halves), known) == ["a snq toy in w@z style"]
    assert prompts_of(params(halves, prompts=["a toy"]), known) == ["a toy"]
    with pytest.raises(ComposeError, match=r"compose\.prompts: .*cup and foreign"):
        composed(params(halves, "sum svd", style="foreign.safetensors"), tiny_base)
