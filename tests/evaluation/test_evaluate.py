"""Evaluation on a tiny random SDXL: what is drawn with what, and what the figures are made of."""

import copy

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from b4m_pipeline.evaluation.evaluate import EvaluationError, evaluate, find_truth, plan
from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.evaluation.samples import BASE, CONTENT, JOINED, KNOWN, MADE, STYLE
from b4m_pipeline.method.combine import join_halves
from tests.evaluation.helpers import PARAMS, THINGS
from tests.training.helpers import frame


def test_every_system_is_asked_with_the_same_seeds_and_the_base_in_plain_words(adapters):
    requests = plan(PARAMS, adapters[-1], THINGS, seed=5)
    assert len(requests) == 2 * (2 + 1 + 1 + 3 + 2) and len({request.key for request in requests}) == len(requests)
    prompts = {(request.system, request.kind): request.prompt for request in requests}
    assert prompts[MADE, "composition"] == prompts[JOINED, "composition"] == "a snq toy in w@z style"
    assert prompts[BASE, "composition"] == "a cup toy in ink style"
    assert [r.prompt for r in requests if r.kind == KNOWN] == ["a car toy"] * 2 + ["a hat toy"] * 2
    assert prompts[CONTENT, "content"] == "a snq toy"
    assert prompts[STYLE, "style"] == f"a house {adapters[-1].metadata['style_noun']} in w@z style"
    assert {request.seed for request in requests} == {5, 6}
    assert {request.plain for request in requests if request.kind == "composition"} == {"a cup toy in ink style"}


def test_long_prompts_that_differ_at_their_end_alone_are_kept_apart(adapters):
    long = PARAMS.prompts[0] + ", " + "very " * 30
    params = PARAMS.model_copy(update={"prompts": [PARAMS.prompts[0], long + "small", long + "large"]})
    requests = plan(params, adapters[-1], [], seed=5)
    assert len({request.key for request in requests}) == len(requests)
    assert {request.kind for request in requests if request.system == MADE} == {"composition", "recontext", "recontext_2"}


def test_another_base_is_refused_and_another_generation_said_aloud(adapters, tiny_base, tiny_sdxl, tmp_path, caplog):
    import shutil

    from safetensors.torch import load_file, save_file

    retrained = tmp_path / "base"
    shutil.copytree(tiny_sdxl, retrained)
    (weights,) = (retrained / "unet").glob("*.safetensors")
    tensors = load_file(weights)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, weights, metadata={"format": "pt"})
    with pytest.raises(EvaluationError, match="train them anew"):
        evaluate(*adapters, tiny_base.model_copy(update={"path": str(retrained)}), PARAMS, [], seed=5)
    content, style, joined, made = (copy.deepcopy(adapter) for adapter in adapters)
    made.metadata["parents"] = '["models:/b4m-content-cup/1", "models:/b4m-style-ink/1"]'
    content.metadata["registry_uri"] = "models:/b4m-content-cup/2"
    evaluate(content, style, joined, made, tiny_base, PARAMS, [], seed=5)
    assert "the content half at hand is models:/b4m-content-cup/2" in caplog.text


def test_a_user_with_the_exported_file_gets_the_same_picture(adapters, evaluated, tiny_base, tmp_path):
    from b4m_pipeline.method.files import save_adapter

    pictures, table = evaluated
    row = table[(table.system == MADE) & (table.kind == "composition")].iloc[1]
    pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_base.path)
    pipeline.load_lora_weights(save_adapter(adapters[-1], tmp_path).parent)
    generator = torch.Generator().manual_seed(int(row.seed))
    (own,) = pipeline(row.prompt, num_inference_steps=2, guidance_scale=3.0, generator=generator).images
    difference = np.abs(np.asarray(own, int) - np.asarray(pictures[row.picture], int))
    assert difference.max() <= 1  # batches round differently


def test_adapters_of_two_lineages_are_refused(adapters, tiny_base):
    content, style, joined, made = adapters
    stranger = join_halves(content, style, frame().content_side)
    stranger.metadata["name"] = "hat-ink"
    with pytest.raises(EvaluationError, match="'hat-ink'"):
        evaluate(content, style, stranger, made, tiny_base, PARAMS, [], seed=0)


def test_truth_is_read_only_where_it_is(tmp_path):
    Image.new("RGBA", (40, 40), (255, 0, 0, 128)).save(tmp_path / "x.png")
    (tmp_path / "cup-ink").mkdir()
    template = str(tmp_path / "{content}-{style}")
    params = PARAMS.model_copy(update={"truth_path": template})
    assert find_truth(params, "cup", "ink", 32) == []
    (tmp_path / "x.png").rename(tmp_path / "cup-ink" / "x.png")
    (picture,) = find_truth(params, "cup", "ink", 32)
    assert picture.size == (32, 32) and picture.getpixel((5, 5)) == (255, 127, 127)
    assert find_truth(PARAMS, "cup", "ink", 32) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("prompts", ["a {content}"]), ("content_prompt", "a toy"), ("style_prompt", "{style} {x}"), ("truth_path", "{noun}")],
)
def test_prompts_without_their_fields_are_refused(field, value):
    with pytest.raises(ValueError, match=field):
        EvaluationParams(**(PARAMS.model_dump() | {field: value}))
