"""Contents and styles trained once, and put together in pairs."""

import os
import signal
import threading
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from b4m_pipeline.inputs.params import ConceptParams
from b4m_pipeline.library import jobs
from b4m_pipeline.library.params import RayParams
from b4m_pipeline.library.table import Entry, LibraryError, Trained
from b4m_pipeline.method.adapter import RECIPE_KEY, Adapter
from b4m_pipeline.pipelines.library import nodes
from tests.library.helpers import run


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
    version = tracking.get_model_version_by_alias("b4m-joined-cup-oil", "trial")
    assert version.tags["parents"] == '["models:/b4m-content-cup/1", "models:/b4m-style-oil/1"]'
    below = tracking.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert {"content cup", "style oil", "pair hat-ink"} <= {own.info.run_name for own in below}
    assert sheet.width > sheet.height / 2

    monkeypatch.setattr("b4m_pipeline.training.stages.fit", lambda *args, **keys: pytest.fail("trained again"))
    with mlflow.start_run():
        again, composed, _, _, _ = run(shelf, tiny_base)
    assert [half.uri for half in again] == [half.uri for half in trained]
    assert [pair.uri for pair in composed] == [f"models:/b4m-joined-{pair.name}/1" for pair in composed]


def many_pairs(contents: int, styles: int) -> list[tuple[Entry, str, Entry, str]]:
    def entry(kind: str, number: int) -> tuple[Entry, str]:
        name = f"{kind}{number}"
        return Entry(kind, ConceptParams(path=name, name=name, token="x", noun="toy")), f"models:/{name}/1"

    return [(*entry("content", one), *entry("style", other)) for one in range(contents) for other in range(styles)]


def test_of_adapters_and_pictures_few_are_held_however_many_pairs_there_are(monkeypatch, tmp_path):
    made, most = [], [0]

    def adapter(*_) -> Adapter:
        own = Adapter({}, {RECIPE_KEY: "r"}, {})
        made.append(weakref.ref(own))
        most[0] = max(most[0], sum(known() is not None for known in made))
        return own

    drawn = Image.new("RGB", (1024, 512))
    own = {
        "fetch_adapter": adapter,
        "join_halves": adapter,
        "_register": lambda *_: "models:/pair/1",
        "_measure": lambda *_: None,
    }
    own |= {"draw_samples": lambda asked, *_: {each.key: drawn for each in asked}, "references_of": lambda *_: []}
    for name, function in own.items():
        monkeypatch.setattr(jobs, name, function)
    loads = []
    monkeypatch.setattr(jobs, "load_family", lambda base: loads.append(base) or SimpleNamespace(load_pipeline=lambda device: 1))
    evaluation = SimpleNamespace(prompts=["{content} {style}"], samples=2, device="cpu")
    about = {"folder": str(tmp_path), "tracking": {}, "reuse": False, "evaluation": evaluation, "seed": 0, "base_model": None}
    settings = SimpleNamespace(**about, library=SimpleNamespace(folder="x"), frame=SimpleNamespace(content_side="lora_A"))
    composed = jobs.compose_pairs(many_pairs(5, 12), settings)
    assert len(composed) == 60 and not [pair.error for pair in composed if pair.error] and len(loads) == 1
    assert most[0] <= jobs._HELD + 3
    assert {picture.size for pair in composed for picture in pair.pictures} == {(224, 112)}


def test_a_job_has_no_more_pairs_than_may_be_lost(monkeypatch):
    chunks = []
    monkeypatch.setattr("b4m_pipeline.library.fan_out.run_jobs", lambda function, jobs, *_: chunks.extend(jobs) or [])
    pairs = many_pairs(40, 25)
    entries = list({entry.name: entry for pair in pairs for entry in (pair[0], pair[2])}.values())
    trained = [Trained(entry.kind, entry.concept.name, f"models:/{entry.concept.name}/1") for entry in entries]
    names = [(pair[0].concept.name, pair[2].concept.name) for pair in pairs]
    settings = SimpleNamespace(library=SimpleNamespace(ray=RayParams(workers=2)))
    nodes.compose_library(entries, names, trained, settings)
    assert [pair for chunk in chunks for pair in chunk] == pairs and max(map(len, chunks)) == 32


def test_a_failure_is_reported_and_the_others_go_on(shelf, tiny_base, tracking):
    for file in (shelf / "hat").iterdir():
        file.write_bytes(b"no picture")
    trained, composed, halves, table, sheet = run(shelf, tiny_base)
    assert [half.name for half in trained if half.error] == ["hat"]
    assert "none of the 2 pictures" in halves.error[1]
    assert [pair.name for pair in composed] == ["cup-ink", "cup-oil"]
    with pytest.raises(LibraryError, match="content hat: PicturesError"):
        nodes.require_all(trained, composed, sheet)


@pytest.mark.slow  # each of Ray's workers imports all that training needs; test_fan_out.py has one die that does not
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
