"""A table of contents and styles: read, trained once, put together in pairs."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.inputs.params import CaptioningParams, ConceptParams, CounterpartParams, IngestionParams, PreservationParams
from b4m_pipeline.library import jobs as library
from b4m_pipeline.library.params import LibraryParams, RayParams
from b4m_pipeline.library.table import LibraryError, choose_pairs, read_table
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.pipelines.library import nodes
from b4m_pipeline.training.params import BreakParams
from tests.conftest import PLAIN_BREAK, PLAIN_CAPTIONING, PLAIN_INGESTION, TINY_FRAME

CONTENT = ConceptParams(path="any", token="snq", noun="toy")
STYLE = ConceptParams(path="any", token="w@z", noun="toy")
BREAK = {
    "steps": 3,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "counterpart_batch_size": 2,
    "counterpart_learning_rate": 1e-3,
    "precision": "no",
    "checkpoint_every": 1,
} | PLAIN_BREAK


def folder(path: Path, colour: tuple[int, int, int], count: int = 2) -> Path:
    path.mkdir(parents=True)
    for index in range(count):
        picture = Image.effect_noise((40, 40), 60).convert("RGB")
        picture.paste(colour, (4 + 6 * index, 8, 24 + 6 * index, 30))
        picture.save(path / f"{index}.png")
    return path


@pytest.fixture
def shelf(tmp_path) -> Path:
    """A folder with two contents, two styles, a counterpart of each and the table of the first four."""
    for number, name in enumerate(("cup", "hat", "ink", "oil", "koala", "noto")):
        folder(tmp_path / name, (40 * number, 200 - 30 * number, 90))
    rows = ["kind,path,noun", *(f"content,{tmp_path / name}," for name in ("cup", "hat"))]
    (tmp_path / "library.csv").write_text("\n".join([*rows, *(f"style,{tmp_path / name},toy" for name in ("ink", "oil"))]))
    return tmp_path


def params(shelf: Path, **changes) -> LibraryParams:
    return LibraryParams(**({"table": str(shelf / "library.csv"), "pairs": "all", "folder": str(shelf / "adapters")} | changes))


def run(shelf: Path, base, **changes):
    """The pipeline's nodes in order; returns trained, composed, the two tables and the sheet."""
    counterparts = CounterpartParams(
        contents=[ConceptParams(path=str(shelf / "koala"), token="ohwx")],
        styles=[ConceptParams(path=str(shelf / "noto"), token="qrv")],
    )
    evaluation = EvaluationParams(
        prompts=["{article} {content} {noun} in {style} style"], content_prompt="{content}", style_prompt="{style}",
        samples=2, steps=2, guidance_scale=3.0, batch_size=8, truth_path=None, clip=None,
    )  # fmt: skip
    half = BreakParams(**BREAK)
    entries, pairs, settings = nodes.read_library(
        params(shelf, **changes), CONTENT, STYLE, counterparts, base, FrameParams(**TINY_FRAME), half, half,
        IngestionParams(**PLAIN_INGESTION), CaptioningParams(**PLAIN_CAPTIONING), PreservationParams(contents=[], styles=[]),
        evaluation, 0,
        str(shelf / "checkpoints"), True, str(shelf / "encoded"),
    )  # fmt: skip
    trained, halves = nodes.train_library(entries, settings)
    composed, table = nodes.compose_library(entries, pairs, trained, settings)
    return trained, composed, halves, table, nodes.show_library(entries, composed, settings)


def test_the_table_gives_each_concept_its_token_noun_and_name(shelf):
    entries = read_table(params(shelf), CONTENT, STYLE)
    assert [(entry.kind, entry.concept.name, entry.concept.token) for entry in entries] == [
        ("content", "cup", "snq"),
        ("content", "hat", "snq"),
        ("style", "ink", "w@z"),
        ("style", "oil", "w@z"),
    ]
    (shelf / "library.yml").write_text(f"- {{kind: style, path: {shelf / 'ink'}, name: my-ink, licence: CC0-1.0}}")
    (entry,) = read_table(params(shelf, table=str(shelf / "library.yml")), CONTENT, STYLE)
    assert (entry.name, entry.concept.licence, entry.concept.noun) == ("style my-ink", "CC0-1.0", "toy")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("contents,{shelf}/cup", r"library.csv, line 3: kind must be content or style, got 'contents'"),
        ("content,", r"line 3: path must be given"),
        ("content,{shelf}/nowhere", r"line 3: .*nowhere is no folder with pictures"),
        ("content,{shelf}/cup", r"line 3: there is another content 'cup'"),
        ("content,{shelf}/hat,b/c", r"line 3: .*must be letters"),
        ("content,{shelf}/hat,hat,,,,more", r"line 3: more fields than the header"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(shelf, row, message):
    table = shelf / "library.csv"
    table.write_text(f"kind,path,name,noun\ncontent,{shelf / 'cup'}\n{row.format(shelf=shelf)}\n")
    with pytest.raises(LibraryError, match=message):
        read_table(params(shelf), CONTENT, STYLE)


def test_other_faults_of_a_table(shelf):
    table = shelf / "library.csv"
    table.write_text("kind,path,colour\ncontent,x,red\n")
    with pytest.raises(LibraryError, match=r"unknown columns \['colour'\]"):
        read_table(params(shelf), CONTENT, STYLE)
    table.write_text("kind,path\n")
    with pytest.raises(LibraryError, match="names no content and no style"):
        read_table(params(shelf), CONTENT, STYLE)
    with pytest.raises(LibraryError, match="cannot be read"):
        read_table(params(shelf, table="nowhere.csv"), CONTENT, STYLE)


def test_pairs_are_all_none_or_named(shelf):
    entries = read_table(params(shelf), CONTENT, STYLE)
    assert choose_pairs(entries, params(shelf)) == [("cup", "ink"), ("cup", "oil"), ("hat", "ink"), ("hat", "oil")]
    assert choose_pairs(entries, params(shelf, pairs="none")) == []
    assert choose_pairs(entries, params(shelf, pairs=[{"content": "hat", "style": "ink"}])) == [("hat", "ink")]
    with pytest.raises(LibraryError, match=r"no style 'inc'; it has \['ink', 'oil'\]"):
        choose_pairs(entries, params(shelf, pairs=[{"content": "hat", "style": "inc"}]))


def test_two_pairs_of_one_name_are_refused(shelf):
    concepts = {"content": ("cat", "cat-face"), "style": ("face-ink", "ink")}
    entries = [
        library.Entry(kind, ConceptParams(path=str(shelf / "cup"), name=name, token="t"))
        for kind, names in concepts.items()
        for name in names
    ]
    with pytest.raises(LibraryError, match="would both be called cat-face-ink"):
        choose_pairs(entries, params(shelf))
    assert choose_pairs(entries, params(shelf, pairs=[{"content": "cat", "style": "ink"}])) == [("cat", "ink")]


def test_each_half_is_trained_once_and_every_pair_put_together(shelf, tiny_base, tracking, monkeypatch):
    import mlflow

    with mlflow.start_run() as parent:
        trained, composed, halves, table, sheet = run(shelf, tiny_base)
    assert [(half.kind, half.name, half.uri) for half in trained] == [
        ("content", "cup", "models:/b4m-content-cup/1"),
        ("content", "hat", "models:/b4m-content-hat/1"),
        ("style", "ink", "models:/b4m-style-ink/1"),
        ("style", "oil", "models:/b4m-style-oil/1"),
    ]
    assert len(composed) == 4 and all(len(pair.pictures) == 2 and not pair.error for pair in composed)
    assert [*zip(table.content_name, table.style_name, strict=True)] == [(pair.content, pair.style) for pair in composed]
    assert table.uri.tolist() == [pair.uri for pair in composed]
    assert all(table[figure].between(-1, 1).all() for figure in ("content", "style", "s_harm"))
    assert len({pair.pictures[0].tobytes() for pair in composed}) == 4
    version = tracking.get_model_version_by_alias("b4m-joined-cup-oil", "candidate")
    assert version.tags["parents"] == '["models:/b4m-content-cup/1", "models:/b4m-style-oil/1"]'
    below = tracking.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert {"content cup", "style oil", "pair hat-ink"} <= {own.info.run_name for own in below}
    assert sheet.width > sheet.height / 2

    monkeypatch.setattr("b4m_pipeline.training.stages.fit", lambda *args, **keys: pytest.fail("trained again"))
    with mlflow.start_run():
        again, composed, _, _, _ = run(shelf, tiny_base)
    assert [half.uri for half in again] == [half.uri for half in trained]
    assert [pair.uri for pair in composed] == [f"models:/b4m-joined-{pair.name}/1" for pair in composed]


def test_a_failure_is_reported_and_the_others_go_on(shelf, tiny_base, tracking):
    for file in (shelf / "hat").iterdir():
        file.write_bytes(b"no picture")
    trained, composed, halves, table, sheet = run(shelf, tiny_base)
    assert [half.name for half in trained if half.error] == ["hat"]
    assert "none of the 2 pictures" in halves.error[1]
    assert [pair.name for pair in composed] == ["cup-ink", "cup-oil"]
    with pytest.raises(LibraryError, match="content hat: PicturesError"):
        nodes.require_all(trained, composed, sheet)


def test_on_ray_with_a_worker_killed_nothing_is_lost_or_done_twice(shelf, tiny_base, tracking, monkeypatch):
    import mlflow

    ray = pytest.importorskip("ray")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stop = threading.Event()

    def kill_one() -> None:
        """The worker that trains, as soon as a checkpoint of it is there."""
        while not stop.wait(0.05):
            if not list((shelf / "checkpoints").glob("*.safetensors")):
                continue
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    try:
                        named = (entry / "cmdline").read_bytes()
                    except OSError:
                        continue
                    if named.startswith(b"ray::train_entry"):
                        os.kill(int(entry.name), signal.SIGKILL)
                        return

    killer = threading.Thread(target=kill_one)
    killer.start()
    begun = time.monotonic()
    try:
        with mlflow.start_run():
            trained, composed, _, _, _ = run(shelf, tiny_base, ray=RayParams(workers=2, retries=2).model_dump())
        assert not killer.is_alive(), f"no worker was killed in {time.monotonic() - begun:.0f} s"
    finally:
        stop.set()
        killer.join()
        ray.shutdown()
    assert not [half.error for half in trained if half.error] and len(composed) == 4
    for kind, name in (("content", "cup"), ("content", "hat"), ("style", "ink"), ("style", "oil")):
        assert len(tracking.search_model_versions(f"name='b4m-{kind}-{name}'")) == 1
