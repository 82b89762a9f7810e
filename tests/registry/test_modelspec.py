"""The header of exported files. What A1111 and Forge make of it is written down here as their readers do it."""

import base64
import io
import json

import pytest
from PIL import Image

from b4m_pipeline.registry.modelspec import THUMBNAIL_BYTES, About, ExportError, data_url, file_metadata, read_thumbnail

MUST = {"sai_model_spec", "architecture", "implementation", "title"}


def sorted_by_a1111(header: dict[str, str]) -> str:
    """Where A1111 and Forge file a LoRA."""
    if header.get("ss_base_model_version", "").startswith("sdxl_"):
        return "SDXL"
    return "SD2" if header.get("ss_v2") == "True" else "SD1"


@pytest.mark.parametrize(
    ("architecture", "prediction", "version", "filed"),
    [
        ("stable-diffusion-v1", "epsilon", "sd_v1", "SD1"),
        ("stable-diffusion-v2-512", "epsilon", "sd_v2", "SD2"),
        ("stable-diffusion-v2-768-v", "v_prediction", "sd_v2_v", "SD2"),
        ("stable-diffusion-xl-v1-base", "epsilon", "sdxl_base_v1-0", "SDXL"),
    ],
)
def test_a_file_says_which_base_model_it_is_for(joined_adapter, architecture, prediction, version, filed):
    joined_adapter.metadata |= {"architecture": architecture, "prediction_type": prediction}
    header = file_metadata(joined_adapter, About())
    assert header["modelspec.architecture"] == f"{architecture}/lora"
    assert header["modelspec.prediction_type"] == {"epsilon": "epsilon", "v_prediction": "v"}[prediction]
    assert header["ss_base_model_version"] == version
    assert sorted_by_a1111(header) == filed


def test_what_users_are_shown(joined_adapter):
    joined_adapter.lora_config["lora_alpha"] = 2
    header = file_metadata(joined_adapter, About(author="Jane", license="CC-BY-4.0"))
    spec = {key.removeprefix("modelspec."): text for key, text in header.items() if key.startswith("modelspec.")}
    assert spec.keys() >= MUST
    assert spec["sai_model_spec"] == "1.0.0" and spec["implementation"] == "diffusers" and spec["title"] == "cup-ink"
    assert spec["resolution"] == "32x32" and spec["date"] == "2026-11-28T12:00:00+00:00"
    assert spec["trigger_phrase"] == "a snq cup in w@z style" and spec["usage_hint"] == "Words: snq, w@z"
    assert spec["author"] == "Jane" and spec["license"] == "CC-BY-4.0" and "thumbnail" not in spec
    assert "**cup** (`snq`) in the style **ink**" in spec["description"]
    assert header["content_token"] == "snq" and header["style_token"] == "w@z"
    assert header["ss_network_dim"] == "4" and header["ss_network_alpha"] == "2.0" and header["ss_output_name"] == "cup-ink"
    assert all(isinstance(text, str) for text in header.values())


def test_where_an_adapter_lies_is_no_part_of_its_file(tiny_adapter):
    plain = file_metadata(tiny_adapter, About())
    tiny_adapter.metadata["registry_uri"] = "models:/b4m-make-cup-ink/1"
    assert file_metadata(tiny_adapter, About()) == plain
    assert json.loads(plain["b4m"])["name"] == "cup-ink"


def test_a_merge_names_its_parts_and_a_base_model_like_no_other_has_no_version(tiny_adapter):
    tiny_adapter.metadata |= {"kind": "merged", "content_name": "cup", "style_name": "ink", "method": "sum"}
    header = file_metadata(tiny_adapter, About())
    assert header["modelspec.merged_from"] == "cup, ink"
    assert header["modelspec.architecture"] == "other/lora" and "ss_base_model_version" not in header


def test_an_adapter_of_an_unknown_architecture_is_not_guessed_at(tiny_adapter):
    del tiny_adapter.metadata["architecture"]
    with pytest.raises(ExportError, match="cup-ink does not say what its base model is"):
        file_metadata(tiny_adapter, About())


@pytest.mark.parametrize(("size", "side"), [((600, 900), 256), ((40, 30), 30)])
def test_a_thumbnail_is_small_whatever_it_shows(size, side):
    noise = Image.effect_noise(size, 200).convert("RGB")
    head, text = data_url(noise).split(",")
    raw = base64.b64decode(text)
    assert head == "data:image/jpeg;base64" and len(raw) <= THUMBNAIL_BYTES
    assert Image.open(io.BytesIO(raw)).size == (side, side)
    assert data_url(noise) == f"{head},{text}"


def test_a_thumbnail_must_be_a_picture(tmp_path):
    Image.new("RGBA", (8, 8)).save(tmp_path / "a.png")
    assert read_thumbnail(tmp_path / "a.png").mode == "RGB"
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(ExportError, match="b.png is no picture"):
        read_thumbnail(tmp_path / "b.png")
