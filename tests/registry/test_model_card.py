"""What a version says about itself, and that it is said in the registry."""

import json

import mlflow
import pandas as pd
import pytest
from PIL import Image

from b4m_pipeline.inputs.training_set import TrainingSet
from b4m_pipeline.method.adapter import example_prompt
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.registry.adapters import register_adapter
from b4m_pipeline.registry.model_card import EVALUATION, MAX_CHARACTERS, model_card, with_evaluation
from b4m_pipeline.registry.tracking import describe_evaluation

URI = "models:/b4m-make-cup-ink/1"
MADE = {
    "kind": "made", "name": "cup-ink", "base_model": "data/base", "frame": "abcdef12" * 2, "code_version": "0.1.0+1",
    "frame_config": '{"base_model": "base@0123"}', "data_digest": "d" * 16, "resolution": "64", "base_vae": "some/vae",
    "params": '{"frame": {"rank": 4, "targets": ["to_k", "to_v"]}, "train": {"steps": 7, "learning_rate": 0.001}, "seed": 3}',
    "content_name": "cup", "style_name": "ink", "content_token": "snq", "style_token": "w@z", "noun": "toy",
    "parents": '["models:/b4m-content-cup/3", "models:/b4m-style-ink/5"]',
    "pictures": '{"content": {"number": 2, "licences": {"CC-BY-4.0": 1, "a|b": 1}, "sha256": ["0123456789", "ba98765432"]}}',
}  # fmt: skip
METRICS = {
    "evaluation.made.composition.s_harm": 0.293,
    "evaluation.made.composition.truth": 0.311,
    "evaluation.halves_joined.composition.s_harm": float("nan"),
}


def test_the_example_uses_the_base_models_own_words():
    drawing = {"num_inference_steps": 50, "guidance_scale": 4.0}
    qwen = model_card(MADE | {"base_pipeline": "QwenImagePipeline"}, URI, drawing)
    assert 'num_inference_steps=50, true_cfg_scale=4.0, negative_prompt=" ", generator=generator)' in qwen
    assert "from diffusers import AutoencoderKLQwenImage" in qwen and "vae=AutoencoderKLQwenImage.from_pretrained" in qwen
    flux2 = model_card(MADE | {"base_pipeline": "Flux2KleinPipeline"}, URI, drawing)
    assert "num_inference_steps=50, guidance_scale=4.0, generator=generator)" in flux2


def test_the_card_says_what_it_is_of_and_how_it_is_used():
    card = model_card(MADE, URI, {"num_inference_steps": 20, "guidance_scale": 2.0})
    for said in (
        "**cup** (`snq`) in the style **ink** (`w@z`)",
        "`base@0123`, vae `some/vae`, 64 x 64 pixels",
        f"`{MADE['frame']}`",
        "`models:/b4m-content-cup/3`, `models:/b4m-style-ink/5`",
        "Prompt: `a snq toy in w@z style`",
        'pipeline("a snq toy in w@z style", num_inference_steps=20, guidance_scale=2.0, generator=generator)',
        f"mlflow models serve -m {URI}",
        "| content | 2 | CC-BY-4.0 (1), a\\|b (1) | 01234567 ba987654 |",
        "| steps | 7 |",
        "| targets | to_k, to_v |",
        "| seed | 3 |",
    ):
        assert said in card


def test_the_example_loads_what_it_was_trained_with():
    card = model_card(MADE | {"base_vae": "some/vae@0123", "base_variant": "fp16"}, URI)
    assert 'load_pipeline(vae=AutoencoderKL.from_pretrained("some/vae", revision="0123"), variant="fp16")' in card
    assert "from diffusers import AutoencoderKL" in card
    plain = {key: value for key, value in MADE.items() if key != "base_vae"}
    assert ".load_pipeline()" in model_card(plain, URI) and "AutoencoderKL" not in model_card(plain, URI)


def test_the_example_of_a_single_file_is_served():
    card = model_card(MADE | {"base_model": "/models/fine tune.safetensors", "base_config": "some/model"}, URI)
    assert "config `some/model`" in card and ".load_pipeline(" not in card
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert f'mlflow.pyfunc.load_model("{URI}").predict({{"prompt": ["a snq toy in w@z style"]}}' in code


def test_the_example_is_python():
    code = model_card(MADE | {"example_prompt": 'a "snq" toy'}, URI).split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert 'a \\"snq\\" toy' in code


def test_halves_and_adapters_of_earlier_versions_have_a_card_too():
    half = {key: MADE[key] for key in ("name", "base_model", "frame", "frame_config", "data_digest", "params", "code_version")}
    half |= {"kind": "style", "token": "w@z", "example_prompt": "a toy in w@z style"}
    card = model_card(half, URI)
    assert "The style half" in card and "`w@z`" in card and "`dddddddddddddddd`" in card and "Made of" not in card
    further = model_card(half | {"parents": '["models:/b4m-style-ink/4"]'}, "models:/b4m-style-ink/5")
    assert "- Goes on from: `models:/b4m-style-ink/4`" in further and "Goes on from" not in card
    assert example_prompt(half) == "a toy in w@z style"


def test_a_merge_says_how_it_was_merged():
    own = {
        "kind": "merged",
        "method": "ties",
        "frame": "none",
        "parents": '["models:/b4m-content-cup/3", "ink.safetensors, sha256 0"]',
    }
    recipe = {"merge": {"method": "ties", "content_weight": 0.8, "style_weight": 1.0, "density": 0.5}, "seed": 3}
    card = model_card(MADE | own | {"params": json.dumps(recipe)}, URI)
    for said in (
        "Two LoRAs merged by ties",
        "## Merge",
        "| content_weight | 0.8 |",
        "| density | 0.5 |",
        "`ink.safetensors, sha256 0`",
    ):
        assert said in card
    assert "Frame" not in card and "## Training" not in card
    silent = {key: value for key, value in (MADE | own).items() if "token" not in key}
    assert 'pipeline("...")' in model_card(silent, URI).replace(", generator=generator", "")


@pytest.mark.parametrize(("step", "said"), [("0", "the halves as they were joined"), ("150", "make's step 150")])
def test_a_guarded_make_says_what_was_kept(step, said):
    seen = {"0": {"kept": 0.5, "style_kept": 0.6}, "150": {"kept": 0.25, "style_kept": 0.3}}
    card = model_card(MADE | {"kept_step": step, "kept_figures": json.dumps(seen)}, "models:/x/1")
    assert f"- Kept: {said}, of what" in card
    assert "(the halves as they were joined 0.50; make's step 150 0.25)" in card and "- Kept" not in model_card(
        MADE, "models:/x/1"
    )


def test_it_is_never_longer_than_the_registry_keeps():
    many = {f"role{n}": {"number": 500, "licences": {"MIT": 500}, "sha256": ["0" * 12] * 500} for n in range(40)}
    card = model_card(MADE | {"pictures": json.dumps(many)}, URI)
    assert len(card) <= MAX_CHARACTERS and "## Training" in card and "00000000" not in card
    assert "and 492 more" in model_card(MADE | {"pictures": json.dumps({"content": many["role0"]})}, URI)
    assert len(model_card(MADE | {"pictures": json.dumps({"x" * 9000: many["role0"]})}, URI)) <= MAX_CHARACTERS


def test_figures_take_the_place_of_earlier_ones_and_leave_the_rest():
    first = with_evaluation(model_card(MADE, URI), {"evaluation.made.composition.s_harm": 0.1}, "runs:/1/sheet.png")
    edited = first + "\n## Remarks\n\nOf a person.\n"
    card = with_evaluation(edited, METRICS, "runs:/2/sheet.png")
    assert card.count(EVALUATION) == 1 and "| made, composition | 0.29 | 0.31 |" in card
    assert "| halves joined, composition | - | - |" in card
    assert "runs:/2/sheet.png" in card and "runs:/1/" not in card and card.endswith("## Remarks\n\nOf a person.\n")
    assert card.startswith(model_card(MADE, URI).rstrip())
    assert with_evaluation("", METRICS).startswith(EVALUATION)


@pytest.fixture
def registered(joined_adapter, tracking, tmp_path):
    save_adapter(joined_adapter, tmp_path / "made")
    register_adapter(tmp_path / "made", inference={"num_inference_steps": 2})
    return tracking


def test_a_registered_version_is_described_and_told_its_figures(registered):
    def description() -> str:
        return registered.get_model_version("b4m-make-cup-ink", "1").description

    assert URI in description() and "num_inference_steps=2" in description() and EVALUATION not in description()
    describe_evaluation(METRICS, URI)  # without a run there is no sheet to point to
    assert EVALUATION not in description()
    with mlflow.start_run() as run:
        describe_evaluation(METRICS, URI)
    assert f"runs:/{run.info.run_id}/pictures/contact_sheet.png" in description() and "0.29" in description()


def test_a_registered_model_shows_its_newest_picture_and_keeps_what_people_wrote(registered, capfd):
    def page() -> str:
        return registered.get_registered_model("b4m-make-cup-ink").description

    assert page().startswith("# cup-ink") and "Prompt: `a snq cup in w@z style`" in page()
    registered.update_registered_model("b4m-make-cup-ink", page() + "\n## Remarks\n\nOf a person.\n")
    for kept in (0.4, 0.5):
        with mlflow.start_run() as run:
            describe_evaluation(METRICS | {"evaluation.made.composition.kept": kept}, URI)
    addresses = [f"(get-artifact?path=pictures%2F{name}.png&run_uuid={run.info.run_id})" for name in ("made", "contact_sheet")]
    for description in (page(), registered.get_model_version("b4m-make-cup-ink", "1").description):
        assert all(address in description for address in addresses) and description.count("get-artifact") == 2
    assert "Version 1 keeps 0.50 of both" in page() and "Of a person." in page() and page().startswith("# cup-ink")
    assert "Created version" not in capfd.readouterr().err  # of MLflow's own


def test_a_version_has_its_prompt_as_a_tag(registered):
    assert registered.get_model_version("b4m-make-cup-ink", "1").tags["prompt"] == "a snq cup in w@z style"


def test_a_version_that_cannot_be_described_does_not_stop_a_run(tracking, caplog):
    with mlflow.start_run():
        describe_evaluation(METRICS, "models:/nobody/1")
    assert "The description of models:/nobody/1 cannot be sent" in caplog.text


def test_a_training_set_knows_whose_its_pictures_are(tiny_manifest):
    manifest, _ = tiny_manifest
    known = manifest.assign(licence=["MIT", "MIT", "CC0-1.0"] + ["unknown"] * (len(manifest) - 3))
    twice = pd.concat([known, known[known.role == "content"]], ignore_index=True)  # further captions of the same pictures
    found = TrainingSet(twice, {}, "x").provenance("content", "union", "counterpart_style")
    assert found["content"]["number"] == 3 and found["content"]["licences"] == {"CC0-1.0": 1, "MIT": 2}
    assert found["content"]["sha256"] == ["00", "01", "02"] and set(found) == {"content", "counterpart_style"}
    assert TrainingSet(manifest, {}, "x").provenance("style")["style"]["licences"] == {"unknown": 3}


def test_the_evaluations_last_node_describes_the_version(registered, monkeypatch):
    from b4m_pipeline.evaluation import contact_sheet
    from b4m_pipeline.pipelines.evaluation.nodes import draw_contact_sheet

    class Made:
        metadata = MADE | {"registry_uri": URI}

    monkeypatch.setattr(contact_sheet, "draw_contact_sheet", lambda *arguments: Image.new("RGB", (4, 4)))
    summary = pd.DataFrame([{"system": "made", "kind": "composition", "measure": "truth", "mean": 0.3456}])
    with mlflow.start_run():
        empty = pd.DataFrame({"picture": [], "system": [], "kind": []})
        draw_contact_sheet(empty, {}, {"content": [], "style": [], "truth": []}, summary, Made())
    assert "| made, composition | 0.35 |" in registered.get_model_version("b4m-make-cup-ink", "1").description
