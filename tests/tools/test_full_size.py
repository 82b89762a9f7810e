"""Models of full size with random weights: their sizes are the published ones."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from b4m_pipeline.diffusion.footprint import denoiser_bytes, encoder_bytes
from b4m_pipeline.diffusion.params import BaseModelParams
from tools import full_size

PUBLISHED = {
    "sdxl": {"unet": 2.567, "text_encoder": 0.123, "text_encoder_2": 0.695, "vae": 0.084},
    "flux2": {"transformer": 3.876, "text_encoder": 4.022, "vae": 0.084},
    "zimage": {"transformer": 6.155, "text_encoder": 4.022, "vae": 0.084},
}
"""Billions of parameters."""


@pytest.mark.parametrize("name", full_size.MODELS)
def test_parts_are_as_large_as_the_published_ones(name, tmp_path, monkeypatch) -> None:
    euler, flow = EulerDiscreteScheduler(), FlowMatchEulerDiscreteScheduler()  # these cannot be made on the meta device
    monkeypatch.setattr(full_size, "EulerDiscreteScheduler", lambda **config: euler)
    monkeypatch.setattr(full_size, "FlowMatchEulerDiscreteScheduler", lambda **config: flow)
    with torch.device("meta"):
        parts = full_size.MODELS[name](tmp_path).components
    sizes = {key: part for key, part in parts.items() if isinstance(part, torch.nn.Module)}
    billions = {key: sum(weight.numel() for weight in part.parameters()) / 1e9 for key, part in sizes.items()}
    assert billions == pytest.approx(PUBLISHED[name], abs=0.001)


def test_configurations_alone_say_how_large_a_model_is(tmp_path) -> None:
    folder = full_size.write_configurations("zimage", tmp_path)
    base = BaseModelParams(path=str(folder), resolution=512)
    assert not list(folder.rglob("*.safetensors"))
    assert denoiser_bytes(base, torch.bfloat16) / 2e9 == pytest.approx(PUBLISHED["zimage"]["transformer"], abs=0.001)
    assert encoder_bytes(base, "cuda")[0] / 2e9 == pytest.approx(PUBLISHED["zimage"]["text_encoder"], abs=0.001)
    small = denoiser_bytes(base.model_copy(update={"quantization": "nf4"}), torch.bfloat16)
    assert 0.28 < small / denoiser_bytes(base, torch.bfloat16) < 0.32


def test_tokenizers_know_every_word_and_their_special_symbols(tmp_path) -> None:
    clip, qwen = full_size.clip_tokenizer(tmp_path / "clip"), full_size.qwen_tokenizer(tmp_path / "qwen")
    ids = clip("a grelk café").input_ids
    assert ids[0] == clip.bos_token_id and ids[-1] == clip.eos_token_id == max(ids) and clip.unk_token_id not in ids[1:-1]
    chat = qwen.apply_chat_template([{"role": "user", "content": "a cat"}], tokenize=False, add_generation_prompt=True)
    assert qwen.decode(qwen(chat).input_ids) == chat
    assert qwen.convert_tokens_to_ids("<|im_start|>") in qwen(chat).input_ids
