"""What the library's nodes hand on, and what they refuse: its trainings are in tests/library."""

import pandas as pd
import pytest
from PIL import Image

from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.library import jobs
from b4m_pipeline.library.table import Composed, LibraryError, Trained
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.pipelines.library import create_pipeline, nodes
from b4m_pipeline.training.params import BreakParams
from tests.conftest import (
    PLAIN_EVALUATION,
    TINY_FRAME,
    captioning_params,
    counterpart_params,
    drawn_counterparts,
    ingestion_params,
    preservation_params,
)
from tests.library.helpers import BREAK, CONTENT, STYLE, folder, params
from tests.pipelines.helpers import run


@pytest.fixture
def shelf(tmp_path):
    names = {"content": ("cup", "hat"), "style": ("ink",)}
    rows = [f"{kind},{folder(tmp_path / name, (9, 99, 199))}" for kind, own in names.items() for name in own]
    (tmp_path / "library.csv").write_text("\n".join(["kind,path", *rows]))
    return tmp_path


def given(shelf, base, **changes) -> dict:
    evaluation = EvaluationParams(
        prompts=["{content} {style}"],
        content_prompt="{content}",
        style_prompt="{style}",
        samples=2,
        steps=2,
        **PLAIN_EVALUATION,
    )
    own = {
        **{"library": params(shelf), "content": CONTENT, "style": STYLE, "counterparts": counterpart_params()},
        **{"base_model": base, "frame": FrameParams(**TINY_FRAME), "evaluation": evaluation, "seed": 0},
        **{"content_break": BreakParams(**BREAK), "style_break": BreakParams(**BREAK | {"steps": 5})},
        **{"ingestion": ingestion_params(), "captioning": captioning_params(), "preservation": preservation_params()},
        **{"checkpoints": str(shelf), "reuse": False, "encoding_cache": None},
    }
    return {f"params_{name}": value for name, value in (own | changes).items()}


def trained(entry, settings) -> Trained:
    """As a training would end: the hat's fails."""
    if entry.concept.name == "hat":
        return Trained(entry.kind, "hat", error="PicturesError: none")
    return Trained(entry.kind, entry.concept.name, f"models:/b4m-{entry.kind}-{entry.concept.name}/1", 1.26)


def composed(pairs, settings) -> list[Composed]:
    figures = pd.DataFrame({"content": [0.5, 0.7], "style": [0.1, 0.3], "seed": [0, 1]})
    return [
        Composed(content.concept.name, style.concept.name, "models:/pair/1", [Image.new("RGB", (32, 32))] * 2, figures)
        for content, _, style, _ in pairs
    ]


def test_what_failed_is_left_out_of_the_pairs_and_said_at_the_end(shelf, tiny_base, monkeypatch, caplog):
    caplog.set_level("INFO", "b4m_pipeline")
    monkeypatch.setattr(jobs, "train_entry", trained)
    monkeypatch.setattr(jobs, "compose_pairs", composed)
    done = create_pipeline().to_nodes("show_library")
    catalog = run(done, **given(shelf, tiny_base))
    assert [message.split(" done")[0] for message in caplog.messages if message.startswith("Half")] == [
        *("Half 1 of 3: content cup", "Half 1 of 3", "Half 2 of 3: content hat", "Half 3 of 3: style ink", "Half 3 of 3")
    ]  # the second one failed
    assert catalog.load("library_wanted_pairs") == [("cup", "ink"), ("hat", "ink")]
    settings = catalog.load("library_settings")
    assert settings.tokens == {"content": "snq", "style": "w@z"} and settings.breaks["style"].steps == 5
    assert settings.tracking == {}  # no run
    halves = catalog.load("library_halves")
    assert halves["name"].tolist() == ["cup", "hat", "ink"] and halves["seconds"].tolist() == [1.3, 0.0, 1.3]
    (row,) = catalog.load("library_pairs").to_dict("records")
    assert row == {
        "content_name": "cup",
        "style_name": "ink",
        "uri": "models:/pair/1",
        "error": "",
        "content": 0.6,
        "style": 0.2,
    }
    with pytest.raises(LibraryError, match=r"1 of the library could not be made.*content hat: PicturesError: none"):
        run(create_pipeline(), **given(shelf, tiny_base))


def test_drawn_counterparts_are_drawn_once_and_all_jobs_read_their_folders(shelf, tiny_base):
    own = given(shelf, tiny_base, counterparts=drawn_counterparts(shelf / "drawn"))
    settings = run(create_pipeline().to_nodes("read_library"), **own).load("library_settings")
    assert settings.counterparts.source == "folders"
    folders = [concept.path for concept in (*settings.counterparts.contents, *settings.counterparts.styles)]
    assert sorted(folders) == sorted(map(str, (shelf / "drawn").iterdir())) and len(folders) == 2


def test_without_pairs_the_table_of_them_has_its_columns(shelf, tiny_base, monkeypatch):
    monkeypatch.setattr(jobs, "train_entry", trained)
    table = run(create_pipeline().to_nodes("compose_library"), **given(shelf, tiny_base, library=params(shelf, pairs="none")))
    assert table.load("library_composed") == []
    assert list(table.load("library_pairs").columns) == ["content_name", "style_name", "uri", "error"]


def test_failed_pairs_end_the_run_too():
    nodes.require_all([Trained("content", "cup", "x")], [Composed("cup", "ink", "y")], Image.new("RGB", (1, 1)))
    with pytest.raises(LibraryError, match="pair cup-ink: no space"):
        nodes.require_all([], [Composed("cup", "ink", error="no space")], Image.new("RGB", (1, 1)))
