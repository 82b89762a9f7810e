"""What each stage needs, which settings need less, and the error before a run that could not begin."""

from types import SimpleNamespace

import pytest

from b4m_pipeline.common.memory import device_memory
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.pipeline_registry import register_pipelines
from b4m_pipeline.prerequisites import check_parameters
from b4m_pipeline.settings import CONFIG_LOADER_ARGS, ConfigLoader
from b4m_pipeline.training import footprint
from b4m_pipeline.training.footprint import (
    GIB,
    HEADER,
    REMEDIES,
    MemoryShortageError,
    Settings,
    check_weights,
    needs,
    remedy,
    report,
)
from b4m_pipeline.training.params import BreakParams, MakeParams
from tests.test_startup import ROOT
from tests.training.helpers import BREAK, MAKE, frame
from tools import full_size

STAGES = ("content_break", "style_break", "make")


def parameters(base: BaseModelParams, **changes) -> dict:
    own = BreakParams(**BREAK | changes)
    draws = SimpleNamespace(batch_size=4)
    counterparts = SimpleNamespace(source="drawn", drawn=SimpleNamespace(batch_size=2, resolution=64))
    given = {"base_model": base, "frame": frame(), "content_break": own, "style_break": own, "make": MakeParams(**MAKE)}
    return given | {"evaluation": draws, "generate": draws, "counterparts": counterparts}


@pytest.fixture
def settings(tiny_base) -> Settings:
    return Settings.of(parameters(tiny_base), "cuda")


def test_every_stage_is_told_and_drawing_has_its_own_sizes(settings) -> None:
    found = {need.stage: need for need in needs(settings)}
    drawn = [f"draw ({name})" for name in ("evaluation", "generate", "counterparts")]
    assert list(found) == ["encode prompts", "encode pictures", *STAGES, *drawn]
    assert found["make"].adapter > found["content_break"].adapter > 0  # both halves, and all of the rank
    assert found["draw (counterparts)"].activations > found["draw (evaluation)"].activations  # fewer, but four times as large
    assert all(need.total > need.weights + need.activations for need in found.values())


def test_both_breaks_at_once_need_the_memory_of_both_on_a_cpu(tiny_base) -> None:
    on_cpu = Settings.of(parameters(tiny_base), "cpu")
    found = {need.stage: need for need in needs(on_cpu)}
    both = found["content_break and style_break, at once"]
    assert abs(both.total - found["content_break"].total - found["style_break"].total) < 2  # rounded
    (row,) = [row for row in report(on_cpu, both.total - 1) if row.startswith(f"| {both.stage} |")]
    assert row.endswith("| no; they are trained one after the other |")


def test_settings_change_what_they_say(settings, tiny_base) -> None:
    def total(own: Settings, stage: str) -> int:
        return footprint._again(own, stage).total

    lower = {
        "gradient_checkpointing: true": "content_break",
        "one_pass: false": "content_break",
        "batch_size: 1": "make",
        "base_model.offload: model": "draw (evaluation)",
        "base_model.quantization: nf4": "make",
        "base_model.offload: group": "draw (evaluation)",
    }
    for name, stage in lower.items():
        assert total(REMEDIES[name](settings), stage) < total(settings, stage), name
    large = Settings.of(parameters(tiny_base.model_copy(update={"resolution": 1024})), "cuda")
    assert REMEDIES["base_model.resolution: 512"](large).base.resolution == 512
    assert REMEDIES["base_model.resolution: 512"](settings).base.resolution == 32


def test_the_cheapest_setting_that_suffices_is_named(settings) -> None:
    (need,) = (need for need in needs(settings) if need.stage == "content_break")
    assert remedy(settings, need, need.total - 1) == ["gradient_checkpointing: true"]
    alone = {name: footprint._again(change(settings), need.stage).total for name, change in REMEDIES.items()}
    several = remedy(settings, need, min(alone.values()) - 1)
    assert len(several) > 1 and set(several) <= REMEDIES.keys()
    assert remedy(settings, need, 0) == []
    rows = list(report(settings, need.total - 1))
    assert all(row.count("|") == HEADER.splitlines()[0].count("|") for row in rows)
    assert "no; with gradient_checkpointing: true |" in rows[2] and rows[0].endswith("| yes |")


def test_a_run_ends_before_it_begins_if_weights_alone_are_too_many(tiny_base, monkeypatch) -> None:
    given, stages = parameters(tiny_base), list(STAGES)
    held = footprint._frozen(Settings.of(given, "cuda"), given["make"]) + footprint._adapter(
        Settings.of(given, "cuda"), given["make"]
    )
    monkeypatch.setattr(footprint, "device_memory", lambda device: held)
    check_weights(given, stages, "cuda")  # all activations of the world are no certainty
    monkeypatch.setattr(footprint, "device_memory", lambda device: held - 1)
    with pytest.raises(MemoryShortageError, match=r"^make holds .* set base_model\.quantization: nf4\. `kedro memory` says"):
        check_weights(given, stages, "cuda")
    check_weights(given, stages, "cpu")
    monkeypatch.setattr(footprint, "device_memory", lambda device: 1)
    with pytest.raises(MemoryShortageError, match="even in 4 bits it does not fit"):
        check_weights(given, stages, "cuda")


def test_the_settings_for_this_memory_are_named_where_they_fit(tiny_base, monkeypatch) -> None:
    plain, small = parameters(tiny_base), parameters(tiny_base.model_copy(update={"quantization": "nf4"}))
    presets = {1: small, 2: plain, 8: small}  # 8 GB are not there
    held = footprint._held(Settings.of(plain, "cuda"), "make")
    monkeypatch.setattr(footprint, "device_memory", lambda device: held - 1)
    with pytest.raises(MemoryShortageError, match=r"use this environment's settings for it, --params=memory=1\. `kedro memory"):
        check_weights(plain, ["make"], "cuda", lambda: presets)
    with pytest.raises(MemoryShortageError, match=r"set base_model\.quantization: nf4"):
        check_weights(plain, ["make"], "cuda", lambda: {8: small})


@pytest.mark.slow
@pytest.mark.parametrize("environment", full_size.MODELS)
def test_settings_by_memory_fit_by_computation(environment, tmp_path) -> None:
    base = {"path": str(full_size.write_configurations(environment, tmp_path)), "revision": None, "variant": None, "vae": None}
    loader = ConfigLoader(str(ROOT / "conf"), env=environment, runtime_params={"base_model": base}, **CONFIG_LOADER_ARGS)
    for size, raw in loader.presets().items():
        own = Settings.of(check_parameters(raw, register_pipelines()), "cuda")
        largest = max(needs(own), key=lambda need: need.total)
        assert largest.total <= 0.95 * size * GIB, (size, largest)  # a driver and a desktop take some of it


def test_this_machine_has_memory() -> None:
    assert GIB < device_memory("cpu") < 2**50
