"""Tiny random models that say what a picture shows."""

import json

import pytest
import torch
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
