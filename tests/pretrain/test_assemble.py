"""The embedded base as a stock pipeline, and the record of what it is made of."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from b4m_pipeline.pretrain.assemble import assemble, draw, load_as_float32, load_start, read_history, save_base, write_history
from b4m_pipeline.pretrain.corpus import CorpusError
from b4m_pipeline.pretrain.denoiser import Denoiser, make_unet
from b4m_pipeline.pretrain.text import make_text_encoders
from b4m_pipeline.pretrain.vae import make_vae
from tests.pretrain.helpers import PARAMS


@pytest.fixture(scope="module")
def pipeline(tokenizer):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = Denoiser(make_unet(PARAMS), make_text_encoders(PARAMS.text, tokenizer))
        return assemble(make_vae(PARAMS.vae, PARAMS.size), denoiser, tokenizer)


def test_a_saved_base_is_half_as_large_and_loads_whole(pipeline, tmp_path):
    save_base(pipeline, tmp_path)
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}  # as before
    loaded = StableDiffusionXLPipeline.from_pretrained(tmp_path, use_safetensors=True)
    parts = (loaded.unet, loaded.vae, loaded.text_encoder, loaded.text_encoder_2)
    assert {part.dtype for part in parts} == {torch.float32}
    assert loaded.config.force_zeros_for_empty_prompt
    weight = pipeline.unet.conv_in.weight
    assert torch.equal(loaded.unet.conv_in.weight, weight.half().float())
    assert not list(tmp_path.rglob("*.bin"))


def test_a_drawing_depends_on_its_seed_and_not_on_its_batch(pipeline):
    together = draw(pipeline, ["a square emoji", "a cross emoji"], seed=3, batch=2)
    alone = draw(pipeline, ["a cross emoji"], seed=4)
    assert [image.size for image in together] == [(32, 32)] * 2
    assert np.abs(np.asarray(together[1], int) - np.asarray(alone[0], int)).max() <= 1
    assert np.abs(np.asarray(together[0], int) - np.asarray(together[1], int)).max() > 1


def test_what_a_base_was_trained_on_is_read_back(pipeline, tmp_path):
    save_base(pipeline, tmp_path)
    with pytest.raises(CorpusError, match=r"No base to go on from in .*: run the pretrain pipeline first"):
        load_start(tmp_path)
    history = [{"contents": ["square"], "loss": [[1, 0.5]]}, {"contents": ["square", "cross"], "loss": []}]
    write_history(tmp_path, history)
    start, _, tokenizer, again = load_start(tmp_path)
    assert again == history == read_history(tmp_path) and start.contents == {"square", "cross"}
    assert not start.denoiser.encoders[1].text_projection.weight.requires_grad
    assert len(tokenizer) == len(pipeline.tokenizer)
    (tmp_path / "training.json").write_text("[")
    with pytest.raises(CorpusError, match="No base to go on from"):
        read_history(tmp_path)


def test_a_configuration_keeps_all_but_its_number_format(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"dtype": "float16", "hidden_size": 8}')
    load_as_float32(file)
    assert json.loads(file.read_text()) == {"dtype": "float32", "hidden_size": 8}
