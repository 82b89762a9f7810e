"""The measurement on a GPU, here on a CPU with tiny models: every part, its tables, and its clock."""

import json
import queue
import shutil
import time

import pytest
import torch
from benchmarks.gpu import Clock, Report, blank_training_set, run, settings_of

from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.params import BaseModelParams
from benchmarks import gpu


@pytest.mark.slow
def test_tiny_models_go_through_all_parts(tiny_sdxl, tiny_flow, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Clock, "end_by_force", lambda self: None)
    monkeypatch.setattr(gpu, "ROUNDS", 2)
    monkeypatch.setattr(gpu, "STEPS", 1)
    monkeypatch.setattr(gpu, "SIZES", (12,))
    folders = {"sdxl": tiny_sdxl, "flux2": tiny_flow("flux2").path}
    monkeypatch.setattr(gpu, "with_preset", with_small_rank(gpu.with_preset))
    run(tmp_path, folders, 600, "cpu")
    tables, figures = (tmp_path / "tables.md").read_text(), json.loads((tmp_path / "figures.json").read_text())
    assert tables.count("## ") == 3 and "| ours |" in tables and "| released |" in tables and "| 12 GB |" in tables
    ways = figures["A step at SDXL's size, 32 pixels"]
    assert set(ways) == {"ours", "released", "plain LoRA"} and all(len(own["seconds"]) == 2 for own in ways.values())
    for environment in ("sdxl", "flux2"):
        own = figures[f"A step of a break with --env={environment}"]
        assert own["12"]["peak_gib"] > own["12"]["computed_gib"] - 0.5 > 0


def with_small_rank(with_preset):
    """Tiny layers are narrower than the environments' rank."""

    def changed(parameters, given, size):
        own = with_preset(parameters, given, size)
        return own | {"frame": own["frame"] | {"rank": 4}}

    return changed


def test_a_denoiser_of_random_weights_is_written_without_the_rest(tiny_flow, tmp_path, monkeypatch) -> None:
    def configurations(name, folder):
        return shutil.copytree(tiny_flow(name).path, folder, ignore=shutil.ignore_patterns("*.safetensors"))

    monkeypatch.setattr(gpu.full_size, "write_configurations", configurations)
    folder = gpu.write_denoiser("flux2", tmp_path / "own", "cpu")
    family = load_family(BaseModelParams(path=str(folder), resolution=32))
    assert family.source.stored("transformer").dtype is torch.bfloat16 and torch.get_default_dtype() is torch.float32
    assert any(weight.any() for weight in family.load_denoiser().parameters())


def test_environments_are_read_with_their_settings_by_memory() -> None:
    base, frame, params = settings_of("sdxl", 8, {"path": "x"})
    assert base.offload == "model" and frame.rank == 64 and params.gradient_checkpointing and params.batch_size == 1
    base, frame, params = settings_of("flux2", 8, {"path": "x"})
    assert (base.quantization, base.path, frame.rank, params.counterpart_batch_size) == ("nf4", "x", 32, 1)
    assert not settings_of("sdxl", 24, {})[2].gradient_checkpointing


def test_parts_without_time_are_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gpu, "compare_ways", lambda *_: time.sleep(0.01))
    monkeypatch.setattr(Clock, "end_by_force", lambda self: None)
    report = run(tmp_path, {"sdxl": tmp_path, "flux2": tmp_path}, 0.01, "cpu")
    assert [table.splitlines()[-1] for table in report.tables] == ["Not measured: no time was left."] * 2
    assert "no time was left" in (tmp_path / "tables.md").read_text()


def test_without_a_gpu_small_models_must_be_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("sys.argv", ["gpu", str(tmp_path), "--sdxl", "x"])
    monkeypatch.setattr(gpu, "pick_device", lambda: "cpu")
    with pytest.raises(SystemExit, match="no GPU: name small models with --sdxl and --flux2"):
        gpu.main()


def test_the_clock_ends_the_process(monkeypatch) -> None:
    ended = queue.Queue()
    monkeypatch.setattr("benchmarks.gpu.os._exit", ended.put)
    clock = Clock(0.05)
    clock.end_by_force()
    assert ended.get(timeout=60) == 3 and clock.left() < 0


@pytest.mark.parametrize("name", ["flux2", "z_image"])
def test_pictures_by_lot_are_such_as_the_family_takes(name, tiny_flow) -> None:
    family = load_family(tiny_flow(name))
    tensors = blank_training_set(family, 2)
    prompts = {key: value for key, value in tensors.items() if not key.startswith("latents")}
    with torch.no_grad():
        said = family.predict(family.load_denoiser(), tensors["latents_mean"], torch.full((2,), 500.0), prompts)
    assert said.shape == tensors["latents_mean"].shape


def test_a_report_is_whole_after_every_part(tmp_path) -> None:
    report = Report(tmp_path, "cpu")
    report.add("first", ["a"], [["1"]], {"x": 1})
    report.skip("second", "it was late")
    assert (tmp_path / "tables.md").read_text().endswith("## second\n\nNot measured: it was late.\n")
    assert json.loads((tmp_path / "figures.json").read_text())["first"] == {"x": 1}
