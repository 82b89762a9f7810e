"""A run in a process of its own: started once, watched, stopped, gone on with."""

import sys
import time
from pathlib import Path

import mlflow
import pytest
import yaml

from b4m_pipeline.studio import runs as module
from b4m_pipeline.studio.asked import RunRequest
from b4m_pipeline.studio.intake import Intake
from b4m_pipeline.studio.runs import TAG, Run, RunError, Runs, last_error, stages, thinned, tidy

CUP, INK = "data/01_raw/own/cup", "data/01_raw/own/ink"
WAITS = "import time; print('under way', flush=True); time.sleep(60)"
FAILS = "import sys; sys.exit('Error: content.path: there is no folder')"


@pytest.fixture
def runs(places, parameters, tracking, monkeypatch):
    """Runs whose process is a Python script, `script`, in place of Kedro."""
    released = []
    own = Runs(places.project, places.output, "test", Intake(places, parameters), lambda: released.append(True))
    own.released = released
    started = module.subprocess.Popen

    def popen(command, **keywords):
        own.command = command
        return started([sys.executable, "-c", own.script, command[4]], **keywords)

    monkeypatch.setattr(module.subprocess, "Popen", popen)
    own.script = "print('done')"
    yield own
    own.close()


def asked(**changes) -> RunRequest:
    plain = {"content": {"path": CUP, "noun": "mug"}, "style": {"path": INK}, "break_steps": 20, "make_steps": 10}
    return RunRequest(**plain | changes)


def ended(runs: Runs) -> Run:
    for _ in range(1200):
        if runs.current.state in ("done", "stopped", "failed"):
            return runs.current
        time.sleep(0.05)
    raise AssertionError(runs.current)


def said(runs: Runs, text: str) -> None:
    for _ in range(1200):
        if text in runs.log(runs.current):
            return
        time.sleep(0.05)
    raise AssertionError(runs.log(runs.current))


def test_a_run_is_kedros_own_with_these_parameters(runs) -> None:
    assert runs.watch() is None
    runs.start(asked(previews=5, seed=3))
    assert ended(runs).state == "done" and runs.released == [True]
    assert runs.command[1:4] == ["-m", "kedro", "run"] and runs.command[5] == "--env=test"
    config = yaml.safe_load(Path(runs.command[4].removeprefix("--config=")).read_text())["run"]
    params = config["params"]
    assert config["pipelines"] == "break_make" and params["seed"] == 3
    assert params["content"] == {"path": CUP, "name": "cup", "token": "snq", "noun": "mug"}
    assert params["content_break"] == params["style_break"] == {"steps": 20, "samples": {"every": 5}}
    assert params["make"] == {"steps": 10, "samples": {"every": 5}}
    assert Runs(runs.project, runs.folder.parent, None, runs.intake, print).current.state == "done"  # after a restart


def test_two_pages_cannot_start_two_runs_and_a_stopped_one_goes_on(runs) -> None:
    runs.script = WAITS
    first = runs.start(asked())
    with pytest.raises(RunError, match="under way since"):
        runs.start(asked())
    with pytest.raises(RunError, match="under way since"):
        runs.go_on()
    said(runs, "under way")
    runs.stop()
    assert ended(runs).state == "stopped" and "Go on" in runs.current.message
    with pytest.raises(RunError, match="No run"):
        runs.stop()
    runs.script = "print('done')"
    assert runs.go_on().id == first.id and ended(runs).state == "done" and runs.current.resumed == 1
    with pytest.raises(RunError, match="no run to go on"):
        runs.go_on()


def test_the_last_error_is_said(runs) -> None:
    runs.script = FAILS
    runs.start(asked())
    assert ended(runs).state == "failed" and runs.current.message == "content.path: there is no folder"
    runs.script = "print('done')"
    runs.start(asked())
    assert ended(runs).state == "done"


def test_a_run_whose_studio_was_killed_is_found_again(runs, monkeypatch) -> None:
    runs.script = WAITS
    runs.start(asked())
    said(runs, "under way")
    monkeypatch.setattr(runs, "_record", lambda run: None)  # the dead write nothing
    again = Runs(runs.project, runs.folder.parent, None, runs.intake, print)
    assert again.current.state == "running"
    with pytest.raises(RunError, match="under way"):
        again.start(asked())
    again.close()
    assert Runs(runs.project, runs.folder.parent, None, runs.intake, print).current.state == "stopped"


def test_mlflow_is_watched_and_told(runs, tmp_path) -> None:
    runs.script = WAITS
    run = runs.start(asked())
    said(runs, "under way")
    with mlflow.start_run(tags={TAG: run.id}) as logged:
        for step in range(12):
            mlflow.log_metric("content_break.loss_content", 1.0 / (step + 1), step=step)
        mlflow.log_metric("content_break.grad_norm_content", 1.0)
        from PIL import Image

        mlflow.log_image(Image.new("RGB", (8, 8)), artifact_file="pictures/content_break/0-step-000005.png")
        mlflow.log_image(Image.new("RGB", (8, 8)), artifact_file="pictures/rehearsal.png")
    told = runs.watch()
    assert [point[0] for point in told["curves"]["content_break.loss_content"]] == list(range(12))
    assert list(told["curves"]) == ["content_break.loss_content"]
    paths = {each["path"] for each in told["pictures"]}
    assert paths == {"pictures/content_break/0-step-000005.png", "pictures/rehearsal.png"}
    at = {stage["name"]: (stage["state"], stage["step"]) for stage in told["stages"]}
    assert at["ingestion"][0] == "done" and at["content_break"] == ("running", 12) and at["style_break"] == ("waiting", 0)
    runs.stop()
    ended(runs)
    for _ in range(1200):
        if mlflow.get_run(logged.info.run_id).info.status == "KILLED":
            break
        time.sleep(0.05)
    assert mlflow.get_run(logged.info.run_id).info.status == "KILLED"


def test_a_store_that_is_away_is_said_and_the_rest_is_shown(runs, monkeypatch) -> None:
    runs.start(asked())
    ended(runs)
    monkeypatch.setattr(module, "_mlflow_runs", lambda run: (_ for _ in ()).throw(ConnectionError("refused\nmore")))
    told = runs.watch()
    assert told["trouble"] == "MLflow cannot be asked: refused" and told["state"] == "done" and told["log"]


def test_stages_follow_from_what_was_logged() -> None:
    run = Run({}, {"content_break": 20, "style_break": 20, "joint_make": 10})

    def states(*logged: str, **last: int) -> list[str]:
        return [each["state"] for each in stages(run, set(logged), {f"{name}.loss_x": at for name, at in last.items()})]

    assert states() == ["running", "waiting", "waiting", "waiting", "waiting"]
    assert states("content_break", content_break=4) == ["done", "running", "waiting", "waiting", "waiting"]
    assert states("content_break", content_break=19) == ["done", "done", "running", "waiting", "waiting"]
    both = ("content_break", "style_break")  # side by side
    assert states(*both, content_break=4, style_break=6) == ["done", "running", "running", "waiting", "waiting"]
    assert states(*both, content_break=19, style_break=6) == ["done", "done", "running", "waiting", "waiting"]
    assert states(*both, content_break=4, style_break=19) == ["done", "running", "done", "waiting", "waiting"]
    assert states("joint_make", joint_make=9) == ["done", "done", "done", "done", "running"]
    run.state = "stopped"
    assert states("content_break", content_break=4)[1] == "stopped"
    run.state = "done"
    told = stages(run, {"joint_make", "evaluation"}, {"joint_make.loss_make": 9})
    assert [each["state"] for each in told] == ["done"] * 5
    assert [each["reused"] for each in told] == [False, True, True, False, False]  # halves from the registry


def test_logs_are_shown_without_the_bars_past() -> None:
    assert tidy("one\n\nbar 1%\rbar 50%\rbar 100%\n\x1b[33mtwo\x1b[0m\r\n") == "one\nbar 100%\ntwo"
    assert last_error("x\nError: first\nValueError: second\nError: the end\ny") == "the end"
    assert last_error("all is well") == ""


def test_long_curves_are_thinned() -> None:
    points = dict.fromkeys(range(5000), 1.0)
    assert len(thinned(points)) <= 240 and thinned(points)[-1] == (4999, 1.0)
    assert thinned({0: 1.0, 2: 3.0}) == [(0, 1.0), (2, 3.0)] and thinned({}) == []
