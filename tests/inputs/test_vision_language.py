"""Captioners of transformers, tiny and random but real: what they are asked, what becomes of their answers, and what is
refused."""

import gc
import json
import shutil
import weakref

import pytest
import torch
from transformers import AutoModelForImageTextToText

from b4m_pipeline.common import devices
from b4m_pipeline.common.hub import HubError
from b4m_pipeline.inputs import vision_language
from b4m_pipeline.inputs.captions import CaptioningError
from b4m_pipeline.inputs.prepare import caption_manifest
from b4m_pipeline.inputs.vision_language import (
    describe,
    describe_rows,
    load_captioner,
    read_config,
    tidy,
    without_manner,
    without_thing,
)
from tests.conftest import captioning_params
from tests.inputs.helpers import MIXED, manifest, noise, squares

FAMILIES = ["qwen2_5", "qwen3", "florence", "blip"]


@pytest.fixture(autouse=True)
def _short_and_precise(monkeypatch):
    """A random model never stops, and its words hang on the last bits."""
    monkeypatch.setattr(vision_language, "_NEW_TOKENS", 8)
    monkeypatch.setattr(devices, "resolve_precision", lambda *_: "no")


@pytest.fixture(params=FAMILIES)
def folder(request):
    return request.getfixturevalue(f"{request.param}_folder")


def pictures(count):
    sizes = [(32, 32), (48, 32), (32, 64)]
    return [noise(sizes[index % 3], index) for index in range(count)]


def test_answers_do_not_depend_on_the_batch(folder):
    captioner, images = load_captioner(str(folder)), pictures(vision_language._BATCH + 1)
    asked = ["Name it.", "Say at length, with all that is around it, what this shows."] * 3
    together = describe(images, asked[: len(images)], captioner)
    assert len(together) == len(images) and all(text.strip() for text in together)
    alone = [describe([image], [text], captioner)[0] for image, text in zip(images, asked, strict=False)]
    assert together == alone


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3"])
def test_the_question_holds_picture_and_instruction_and_the_answer_is_the_models_own(name, request):
    folder = request.getfixturevalue(f"{name}_folder")
    captioner, (image,) = load_captioner(str(folder)), pictures(1)
    inputs = vision_language._inputs(captioner, [image], ["Name it."])
    asked = captioner.processor.tokenizer.decode(inputs["input_ids"][0])
    patches = "<|image_pad|>" * 16  # 32 pixels a side in patches of 4, of which 2 x 2 become one
    assert asked == (f"<|im_start|>user\n<|vision_start|>{patches}<|vision_end|>Name it.\n<|im_end|><|im_start|>assistant")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        ids = list(inputs["input_ids"][0])
        for _ in range(4):
            given = torch.tensor([ids])
            kinds = (given == model.config.image_token_id).int()
            pixels = {key: inputs[key] for key in ("pixel_values", "image_grid_thw")}
            logits = model(input_ids=given, mm_token_type_ids=kinds, **pixels, use_cache=False).logits
            logits[..., model.config.text_config.eos_token_id] = -torch.inf  # min_new_tokens of its generation_config
            ids.append(logits[0, -1].argmax())
    captioner.processor.tokenizer.batch_decode = lambda answers, **_: answers.tolist()  # bytes are not always letters
    (said,) = describe([image], ["Name it."], captioner)
    assert said[:4] == [int(index) for index in ids[-4:]]


def test_another_instruction_and_another_picture_have_other_answers(qwen3_folder):
    captioner, (first, second) = load_captioner(str(qwen3_folder)), pictures(2)
    answers = describe([first, first, second], ["Name it.", "Where is it?", "Name it."], captioner)
    assert len(set(answers)) == 3


def test_each_kind_is_asked_by_its_own_instruction(qwen3_folder, monkeypatch):
    asked = []

    def answer(images, instructions, captioner):
        asked.extend(instructions)
        return ["The image shows a watercolour painting of a boat."] * len(images)

    monkeypatch.setattr(vision_language, "describe", answer)
    params = captioning_params(
        vision_language_model=str(qwen3_folder), content_instruction="Around {article} {noun}?", style_instruction="What?"
    )
    captions = caption_manifest(MIXED, squares(MIXED), params, "w@z").set_index("picture").caption
    assert asked == ["Around a toy?", "What?", "Around a dog?"]
    assert captions["content/toy/a"] == "a snq toy, a watercolour painting of a boat"
    assert captions["counterpart_style/oil/a"] == "a boat emoji in qrv style"


@pytest.mark.parametrize("name", ["florence", "blip"])
def test_what_follows_no_instruction_loses_the_words_for_the_thing(name, request, monkeypatch):
    said = {"content/toy/a": "A painting of a red toy on a table.", "counterpart_content/dog/a": "a brown dog"}
    monkeypatch.setattr(vision_language, "describe", lambda images, *_: [said.get(key, "a red boat") for key in rows.picture])
    params = captioning_params(vision_language_model=str(request.getfixturevalue(f"{name}_folder")))
    rows = MIXED[MIXED.picture.isin([*said, "counterpart_style/oil/a"])]
    found = describe_rows(rows, squares(rows), params)
    assert found == {"content/toy/a": "a painting, on a table", "counterpart_style/oil/a": "a red boat"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The image shows a red apple.", "a red apple"),
        ('  "A red\n apple"  ', "a red apple"),
        ("This photograph depicts **Apples**", "apples"),
        ("Sure! Here is a short name: red apple", "red apple"),
        ("In this picture, there is a TV", "a TV"),
        ("TV set", "TV set"),
        ("imagery of the sea", "imagery of the sea"),
        ("...", ""),
        ("", ""),
    ],
)
def test_answers_become_one_line_without_an_opening(answer, expected):
    assert tidy(answer) == expected


def test_manner_and_thing_are_told_apart():
    assert without_manner("a watercolor painting of a boat") == "a boat"
    assert without_manner("an old black-and-white photo of two cups") == "two cups"
    assert without_manner("a boat of wood") == "a boat of wood"
    assert without_thing("a cartoon of a blue teapot, on a table", "teapot") == "a cartoon, on a table"
    assert without_thing("three Teapots beside a cup", "teapot") == "beside a cup"
    assert without_thing("a steampot on a table", "teapot") == "a steampot on a table"
    assert without_thing("a blue teapot", "teapot") == ""


def test_a_long_answer_ends_where_captions_end(qwen3_folder, monkeypatch):
    monkeypatch.setattr(vision_language, "describe", lambda images, *_: ["word " * 90] * len(images))
    params = captioning_params(vision_language_model=str(qwen3_folder), max_words=10)
    (caption, _) = caption_manifest(TOY, squares(TOY), params, "w@z").caption
    assert caption == "a snq toy, " + " ".join(["word"] * 10)


TOY = manifest(("content/toy/a", "content", "toy", "snq", "toy", ""))


def test_a_captioner_is_loaded_once_and_gone_afterwards(qwen3_folder, monkeypatch):
    seen, load = [], vision_language.load_captioner

    def watched(path):
        captioner = load(path)
        seen.append(weakref.ref(captioner.model))
        return captioner

    monkeypatch.setattr(vision_language, "load_captioner", watched)
    params = captioning_params(vision_language_model=str(qwen3_folder))
    table = caption_manifest(MIXED, squares(MIXED), params, "w@z")
    assert table.caption_source.tolist().count("vision_language_model") == 3
    gc.collect()
    assert len(seen) == 1 and seen[0]() is None


def copy(folder, path, *without):
    shutil.copytree(folder, path, ignore=shutil.ignore_patterns(*without))
    return str(path)


def test_what_is_no_captioner_is_refused_by_its_configuration_alone(clip_folder, tmp_path, qwen3_folder):
    assert read_config(str(qwen3_folder)).model_type == "qwen3_vl"
    with pytest.raises(CaptioningError, match=r"vision_language_model: .* is no captioner .*Supported are blip, florence2"):
        read_config(str(tmp_path))
    with pytest.raises(CaptioningError, match=r"of the class clip. Supported are blip, florence2, .*qwen3_vl"):
        read_config(str(clip_folder))
    original = {"model_type": "florence2", "vision_config": {}, "text_config": {"model_type": "florence2_language"}}
    (tmp_path / "config.json").write_text(json.dumps(original))  # microsoft/Florence-2-base, which brings code of its own
    with pytest.raises(CaptioningError, match="is no captioner") as told:
        read_config(str(tmp_path))
    assert len(str(told.value)) < 600
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}))
    with pytest.raises(CaptioningError, match="is no captioner"):  # code of its own is not run
        read_config(str(tmp_path))


def test_a_model_of_the_hub_is_asked_for_by_id_and_revision():
    with pytest.raises(HubError, match=r"vision_language_model: 'Qwen/none' is not in .*hf download Qwen/none --revision abc"):
        read_config("Qwen/none@abc")


def test_missing_files_are_named(qwen3_folder, florence_folder, tmp_path):
    weights = tmp_path / "pickled"
    copy(qwen3_folder, weights, "*.safetensors")
    torch.save({}, weights / "pytorch_model.bin")
    with pytest.raises(CaptioningError, match=r"pickled' \(qwen3_vl\) cannot be loaded .*model.safetensors"):
        load_captioner(str(weights))
    with pytest.raises(CaptioningError, match=r"silent' \(qwen3_vl\) has no chat template. Supported are"):
        load_captioner(copy(qwen3_folder, tmp_path / "silent", "chat_template.jinja"))
    with pytest.raises(CaptioningError, match=r"blind' \(florence2\) cannot be loaded .*those of its processor"):
        load_captioner(copy(florence_folder, tmp_path / "blind", "processor_config.json", "preprocessor_config.json"))
    damaged = tmp_path / "damaged"
    copy(qwen3_folder, damaged)
    (damaged / "model.safetensors").write_bytes(b"\x10" * 40)
    with pytest.raises(CaptioningError, match="cannot be loaded"):
        load_captioner(str(damaged))
