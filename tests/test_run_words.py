import json
import shlex
from types import SimpleNamespace

import click
import pandas as pd
import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro_datasets.pandas import CSVDataset

from b4m_pipeline import run_words
from b4m_pipeline.common import progress
from b4m_pipeline.context import read_params
from b4m_pipeline.datasets.adapter import AdapterDataset
from b4m_pipeline.datasets.own_files import OwnFilesDataset
from b4m_pipeline.diffusion.params import GenerateParams
from b4m_pipeline.inputs.training_set import TrainingSet
from b4m_pipeline.registry.adapters import _record


def concept(name: str) -> SimpleNamespace:
    return SimpleNamespace(name=name, path=f"own/{name}")


@pytest.mark.parametrize(
    ("names", "inputs", "expected"),
    [
        (["break_make"], {"params:content", "params:style"}, "break_make cup-ink"),
        (["__default__"], {"params:content", "params:style"}, "break_make cup-ink"),
        (["style_break"], {"params:style"}, "style_break ink"),
        (["joint_make", "evaluation"], {"manifest", "content_adapter"}, "joint_make+evaluation cup-ink"),
        (["library"], {"params:content", "params:style"}, "library"),
        (["generate"], set(), "generate b4m-make-cup-ink@champion"),
        (["compose"], set(), "compose b4m-content-cup/3 ink.safetensors"),
    ],
)
def test_a_run_is_named_by_pipelines_and_concepts(names, inputs, expected) -> None:
    parameters = {
        "content": concept("cup"),
        "style": concept("ink"),
        "generate": SimpleNamespace(adapter="models:/b4m-make-cup-ink@champion"),
        "compose": SimpleNamespace(content="models:/b4m-content-cup/3", style="files/ink.safetensors"),
    }
    assert run_words.subject(names, inputs, parameters) == expected


def training(**changes) -> SimpleNamespace:
    own = dict.fromkeys(run_words._PER_STEP, 1) | {"preservation_weight": 0.1, "steps": 450} | changes
    return SimpleNamespace(**own)


def test_a_break_takes_as_long_as_the_other_one_only_if_their_steps_are_alike(monkeypatch) -> None:
    monkeypatch.setattr(progress, "_speeds", {})
    alike = {"content_break": training(), "style_break": training(steps=300)}
    assert run_words.seconds("style_break", alike) is None  # nothing was measured
    progress._speeds["content break"] = 0.5
    assert run_words.seconds("style_break", alike) == 150
    assert run_words.seconds("content_break", alike) is None
    for change in ({"batch_size": 2}, {"preservation_weight": 0.0}):
        assert run_words.seconds("style_break", alike | {"style_break": training(**change)}) is None
    assert run_words.seconds("joint_make", alike) is None


def test_what_was_read_is_counted_by_pictures_not_by_captions(tmp_path, tiny_manifest) -> None:
    table, _ = tiny_manifest
    twice = pd.concat([table, table[table["role"] == "content"]], ignore_index=True)  # a further caption of each
    catalog = DataCatalog({"input_sheet": CSVDataset(filepath=str(tmp_path / "sheet.png"))})
    told = run_words.done("ingestion", {"training_set": TrainingSet(twice, {}, "e")}, catalog)
    assert told == f"3 of cup, 3 of ink, 4 of counterparts; with their captions in {tmp_path / 'sheet.png'}"


@pytest.fixture
def made(tmp_path, tiny_adapter, monkeypatch) -> DataCatalog:
    """What a run of break_make leaves, version 4 in the registry; the working directory is its folder."""
    monkeypatch.chdir(tmp_path)
    adapter = AdapterDataset(filepath="adapters/made")
    tiny_adapter.metadata["example_prompt"] = "a snq cup's lid in w@z style"
    adapter.save(tiny_adapter)
    _record(tmp_path / "adapters/made", "b4m-make-cup-ink", "4", "run")
    samples = pd.DataFrame({"picture": ["base/x-0", "made/x-0"], "system": ["base", "made"], "kind": "composition"})
    figures = {"kind": "composition", "measure": "kept", "low": [0.4, 0.2], "high": [0.6, 0.4], "pictures": 6}
    summary = pd.DataFrame({"system": ["made", "halves joined"], "mean": [0.5, 0.3]} | figures)
    return DataCatalog(
        {
            "made_adapter": adapter,
            "samples": MemoryDataset(samples),
            "evaluation_summary": MemoryDataset(summary),
            "sample_pictures": OwnFilesDataset(path="samples", dataset="pillow.ImageDataset", filename_suffix=".png"),
        }
    )


def test_a_run_ends_with_the_picture_the_figure_the_versions_and_commands_that_can_be_given(made, monkeypatch) -> None:
    monkeypatch.setattr(run_words, "with_aliases", lambda uri: " (candidate)")
    lines = run_words.ending(["joint_make", "evaluation"], made, "sdxl")
    assert lines[:3] == [
        "Made: samples/made/x-0.png",
        "Kept of both content and style: 0.50 (0.40 to 0.60 over 6 drawings; the halves as joined: 0.30)",
        "In the registry: models:/b4m-make-cup-ink/4 (candidate)",
    ]
    command = shlex.split(lines[3].removeprefix("Next: "))
    assert command[:4] == ["kedro", "run", "--env=sdxl", "--pipelines=generate"]
    params = read_params(None, click.Option(["--params"]), command[4].removeprefix("--params="))
    given = GenerateParams(**params["generate"])
    assert given.adapter == "models:/b4m-make-cup-ink/4" and given.prompts == ["a snq cup's lid in w@z style"]
    assert [line.split() for line in lines[4:]] == [
        ["kedro", "promote", "b4m-make-cup-ink", "--version", "4"],
        ["kedro", "studio", "--env=sdxl"],
    ]
    assert run_words.ending(["ingestion"], made, None) == []


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ({}, "models:/b4m-make-cup-ink/4, adapters/made"),
        ({"kept_step": "0"}, "models:/b4m-make-cup-ink/4, adapters/made"),  # a warning has said it
        ({"kept_step": "8"}, "step 8 keeps most (halves joined 0.30; step 8 0.50), models:/b4m-make-cup-ink/4, adapters/made"),
    ],
)
def test_the_line_after_make_says_what_was_kept_and_where_it_is(made, tiny_adapter, kept, expected) -> None:
    figures = json.dumps({"0": {"kept": 0.3}, "8": {"kept": 0.5}})
    tiny_adapter.metadata |= kept | ({"kept_figures": figures} if kept else {})
    assert run_words.done("joint_make", {"made_adapter": tiny_adapter, "curve": 1}, made) == expected
