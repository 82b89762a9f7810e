"""Tiny random models that say what a picture shows."""

import json

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    RobertaTokenizer,
)

from tests.inputs.helpers import WORDS


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory, tiny_tokenizer):
    path = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": tiny_tokenizer.bos_token_id, "eos_token_id": tiny_tokenizer.eos_token_id}
    limits = {"vocab_size": len(tiny_tokenizer), "max_position_embeddings": tiny_tokenizer.model_max_length}
    text = {**tower, **ends, **limits}
    config = CLIPConfig(text_config=text, vision_config={**tower, "image_size": 16, "patch_size": 8}, projection_dim=8)
    CLIPModel(config).save_pretrained(path)
    side = {"height": 16, "width": 16}
    CLIPProcessor(CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=side), tiny_tokenizer).save_pretrained(path)
    (path / "tags.json").write_text(json.dumps(WORDS))
    return path


@pytest.fixture(scope="session")
def blip_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "apple", "dog", "sea", "with", "boat"]
    vocabulary = {word: index for index, word in enumerate(words)}
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    text = {**tower, **ids, "vocab_size": len(words), "encoder_hidden_size": 16, "max_position_embeddings": 64}
    config = BlipConfig(text_config=text, vision_config={**tower, "image_size": 16, "patch_size": 8}, projection_dim=8)
    BlipForConditionalGeneration(config).save_pretrained(path)
    image_processor = BlipImageProcessorPil(size={"height": 16, "width": 16})
    BlipProcessor(image_processor, BertTokenizer(vocab=vocabulary)).save_pretrained(path)
    return path


ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
CHAT = """{% for turn in messages %}<|im_start|>{{ turn.role }}
{% for part in turn.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}
{% endif %}{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"""


def save_qwen(path, config_class, model_class, text: dict, vision: dict):
    """A tiny random Qwen-VL with the files that such a model has on the Hub."""
    tokenizer = Qwen2Tokenizer(
        vocab={word: index for index, word in enumerate([*ALPHABET, *MARKS])}, merges=[],
        pad_token=MARKS[0], unk_token=MARKS[0], eos_token=MARKS[2], extra_special_tokens=MARKS[1:], chat_template=CHAT,
    )  # fmt: skip
    ids = dict(zip(MARKS, tokenizer.convert_tokens_to_ids(MARKS), strict=True))
    tower = {"hidden_size": 16, "intermediate_size": 16}
    text |= tower | {"vocab_size": len(tokenizer), "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    text |= {"bos_token_id": None, "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"]}
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    vision |= tower | {"depth": 1, "out_hidden_size": 16, "num_heads": 2, "patch_size": 4}
    marks = {f"{name}_token_id": ids[f"<|{name}|>"] for name in ("vision_start", "vision_end")}
    marks |= {f"{name}_token_id": ids[f"<|{name}_pad|>"] for name in ("image", "video")}
    torch.manual_seed(0)
    model = model_class(config_class(text_config=text, vision_config=vision, **marks))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)  # at its usual size a random model says the same of everything
    model.generation_config.update(min_new_tokens=4)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    size = {"shortest_edge": 64, "longest_edge": 1024}
    Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, size=size).save_pretrained(path)
    settings = path / "preprocessor_config.json"  # on the Hub it names the class that needs torchvision
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"image_processor_type": "Qwen2VLImageProcessorFast"}))
    return path


@pytest.fixture(scope="session")
def qwen2_5_folder(tmp_path_factory):
    vision = {"window_size": 16, "fullatt_block_indexes": [0]}
    path = tmp_path_factory.mktemp("qwen2_5")
    return save_qwen(path, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, {}, vision)


@pytest.fixture(scope="session")
def qwen3_folder(tmp_path_factory):
    vision = {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    return save_qwen(tmp_path_factory.mktemp("qwen3"), Qwen3VLConfig, Qwen3VLForConditionalGeneration, {"head_dim": 8}, vision)


@pytest.fixture(scope="session")
def florence_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("florence")
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *ALPHABET]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = RobertaTokenizer(vocab=vocabulary, merges=[], extra_special_tokens={"image_token": "<image>"})
    text = {"model_type": "bart", "vocab_size": len(tokenizer), "d_model": 16, "max_position_embeddings": 256}
    for part in ("encoder", "decoder"):
        text |= {f"{part}_layers": 1, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 16}
    text |= {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    vision = {
        "depths": [1, 1], "patch_size": [3, 3], "patch_stride": [2, 2], "patch_padding": [1, 1], "patch_prenorm": [False, True],
        "embed_dim": [8, 16], "num_heads": [2, 2], "num_groups": [2, 2], "window_size": 4, "projection_dim": 16,
    }  # fmt: skip
    torch.manual_seed(0)
    ids = {"image_token_id": tokenizer.image_token_id}
    model = Florence2ForConditionalGeneration(Florence2Config(text_config=text, vision_config=vision, **ids))
    model.generation_config.update(suppress_tokens=[0, 1, 3, 4, len(tokenizer) - 1], min_new_tokens=6)
    model.save_pretrained(path)
    images = CLIPImageProcessorPil(size={"height": 32, "width": 32}, do_center_crop=False)
    images.image_seq_length = 65  # 8 x 8 of the vision tower's last stage, and their mean
    Florence2Processor(images, tokenizer).save_pretrained(path)
    return path
