"""Base models of full size with random weights, in diffusers' format: for what depends on sizes alone, such as memory, time and
the names of layers. Images are noise. Tokenizers know single bytes, so that no vocabulary has to be downloaded.

    python -m tools.full_size sdxl FOLDER [--configurations]

With --configurations no weights are written.

The sizes are those that the models' configurations state on the Hugging Face Hub.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.models.modeling_utils import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedModel,
    Qwen2TokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

QWEN_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat as Qwen3 reads it, without its tools."""


def _files_of_bytes(folder: Path, more: list[str]) -> tuple[str, str]:
    """Vocabulary and merges of a byte-level tokenizer that merges nothing, and these symbols after the bytes'."""
    folder.mkdir(parents=True, exist_ok=True)
    symbols = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *more]
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({symbol: index for index, symbol in enumerate(symbols)}), encoding="utf-8")
    merges.write_text("#version: 0.2\n", encoding="utf-8")
    return str(vocabulary), str(merges)


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's, of bytes."""
    ends = [f"{symbol}</w>" for symbol in sorted(pre_tokenizers.ByteLevel.alphabet())]
    _files_of_bytes(folder, [*ends, "<|startoftext|>", "<|endoftext|>"])
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def qwen_tokenizer(folder: Path) -> Qwen2TokenizerFast:
    """Qwen's, of bytes, with its chat."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    _files_of_bytes(folder, special)
    tokenizer = Qwen2TokenizerFast.from_pretrained(folder, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.chat_template = QWEN_CHAT
    return tokenizer


def qwen3_4b() -> Qwen3ForCausalLM:
    """The text encoder of FLUX.2 klein (4B) and Z-Image."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=151936,
            hidden_size=2560,
            intermediate_size=9728,
            num_hidden_layers=36,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=40960,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000},
            tie_word_embeddings=True,
        )
    )


def _four_blocks(**config: Any) -> AutoencoderKL:
    """The VAE of eight pixels a latent that SDXL, FLUX.1 and Z-Image have."""
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    return AutoencoderKL(**blocks, block_out_channels=[128, 256, 512, 512], layers_per_block=2, **config)


def sdxl(folder: Path) -> StableDiffusionXLPipeline:
    """Stable Diffusion XL 1.0: 2.6 billion parameters in the UNet, 0.8 in the text encoders."""
    words = clip_tokenizer(folder)
    special = {
        "vocab_size": 49408,
        "bos_token_id": len(words) - 2,
        "eos_token_id": len(words) - 1,
        "max_position_embeddings": 77,
    }
    small = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    large = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
    unet = UNet2DConditionModel(
        sample_size=128,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        block_out_channels=[320, 640, 1280],
        layers_per_block=2,
        transformer_layers_per_block=[1, 2, 10],
        attention_head_dim=[5, 10, 20],
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    with torch.device("cpu"):  # it calculates, also where all else is on the meta device
        scheduler = EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
        )
    return StableDiffusionXLPipeline(
        vae=_four_blocks(latent_channels=4, sample_size=1024, scaling_factor=0.13025),
        text_encoder=CLIPTextModel(CLIPTextConfig(**small, projection_dim=768, hidden_act="quick_gelu", **special)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**large, projection_dim=1280, hidden_act="gelu", **special)),
        tokenizer=words,
        tokenizer_2=words,
        unet=unet,
        scheduler=scheduler,
    )


def flux2_klein(folder: Path) -> Flux2KleinPipeline:
    """FLUX.2 klein base 4B: 3.9 billion parameters in the transformer, 4.0 in the text encoder."""
    transformer = Flux2Transformer2DModel(
        num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
    )
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLFlux2(),
        text_encoder=qwen3_4b(),
        tokenizer=qwen_tokenizer(folder),
        transformer=transformer,
        is_distilled=False,
    )


def z_image(folder: Path) -> ZImagePipeline:
    """Z-Image: 6.2 billion parameters in the transformer, 4.0 in the text encoder."""
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_four_blocks(latent_channels=16, sample_size=1024, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=qwen3_4b(),
        tokenizer=qwen_tokenizer(folder),
        transformer=ZImageTransformer2DModel(),
    )


MODELS: dict[str, Callable[[Path], DiffusionPipeline]] = {"sdxl": sdxl, "flux2": flux2_klein, "zimage": z_image}
"""By the environment that trains on them."""


def write(name: str, folder: Path) -> Path:
    """One of MODELS, in bfloat16, unless it is there already."""
    if not (folder / "model_index.json").exists():
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)  # in float32 it might not fit
        try:
            MODELS[name](folder / "vocabulary").save_pretrained(folder, safe_serialization=True)
        finally:
            torch.set_default_dtype(before)
    return folder


def write_configurations(name: str, folder: Path) -> Path:
    """One of MODELS without its weights: what `kedro memory` reads."""
    with torch.device("meta"):
        pipeline = MODELS[name](folder / "vocabulary")
    pipeline.save_config(folder)
    for part, component in pipeline.components.items():
        if isinstance(component, PreTrainedModel):
            component.config.save_pretrained(folder / part)
        elif isinstance(component, ModelMixin | SchedulerMixin):
            component.save_config(folder / part)
        elif component is not None:
            component.save_pretrained(folder / part)
    return folder


if __name__ == "__main__":
    if "--configurations" in sys.argv[3:]:
        write_configurations(sys.argv[1], Path(sys.argv[2]))
    else:
        write(sys.argv[1], Path(sys.argv[2]))
