import logging
import os
from types import SimpleNamespace

import mlflow
import pandas as pd
import pytest
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline

from b4m_pipeline import run_log
from b4m_pipeline.common import progress
from b4m_pipeline.run_log import RunLogHook, plan_of


def half(pictures: int) -> int:
    return pictures


def node(name: str, given: str, made: str | list[str] | None) -> Node:
    return Node(half, given, made, name=name)


CONTENT = Pipeline([node("train", "pictures", "content_half")], namespace="content_break", inputs={"pictures"})
OWN = Pipeline([node("check", "raw", "checked"), node("encode", "checked", "pictures")])
END = Pipeline([node("require", "content_break.content_half", None)])
KNOWN = {"own": OWN, "content_break": CONTENT, "end": END, "__default__": OWN + CONTENT + END}

PARAMETERS = {"content_break": SimpleNamespace(steps=450), "content": SimpleNamespace(name="penguin", path="own/penguin")}


def test_a_runs_stages_are_its_pipelines_in_order() -> None:
    plan = plan_of(KNOWN["__default__"], KNOWN, PARAMETERS)
    assert [(stage["name"], stage["first"], stage["last"]) for stage in plan] == [
        ("own", "check", "encode"),
        ("content_break", "content_break.train", "content_break.train"),
        ("end", "require", "require"),
    ]
    assert plan[1]["label"] == "Stage 2 of 3, content break" and plan[1]["doing"] == "450 steps on penguin"
    (alone,) = plan_of(CONTENT, KNOWN, PARAMETERS)
    assert alone["label"] == "Content break"  # no stage of one
    assert plan_of(Pipeline([node("mine", "a", "b")]), KNOWN, PARAMETERS) == []


@pytest.fixture
def hook(monkeypatch):
    """As after `before_pipeline_run`."""
    monkeypatch.setattr(run_log, "pipelines", KNOWN)
    monkeypatch.setattr(progress, "_speeds", {})
    own = RunLogHook()
    own._context = SimpleNamespace(params=PARAMETERS, env=None)
    own.before_pipeline_run({"pipeline_names": None}, KNOWN["__default__"])
    yield own
    os.environ.pop("B4M_STAGES", None)


def run(hook: RunLogHook, *nodes: Node) -> None:
    """What Kedro calls for these nodes."""
    catalog = DataCatalog()
    for each in nodes:
        outputs = dict.fromkeys(each.outputs, 1)
        hook.before_node_run(each)
        hook.after_node_run(each, catalog, outputs)
        for name, data in outputs.items():
            hook.after_dataset_saved(name, data, each)


def test_each_stage_has_a_line_before_and_a_line_after_it(hook, caplog) -> None:
    with caplog.at_level(logging.INFO):
        run(hook, *KNOWN["__default__"].nodes)
        hook.after_pipeline_run(DataCatalog())
    assert [message.split(" in ")[0] for message in caplog.messages] == [
        "Stage 1 of 3, own: begins",
        "Stage 1 of 3, own done",
        "Stage 2 of 3, content break: 450 steps on penguin",
        "Stage 2 of 3, content break done",
        "Stage 3 of 3, end: begins",
        "Stage 3 of 3, end done",
    ]
    assert "B4M_STAGES" not in os.environ


def test_a_node_in_another_process_says_its_stages_lines_too(hook, caplog) -> None:
    """Kedro makes hooks of its own there, which are told of no pipeline."""
    with caplog.at_level(logging.INFO):
        run(RunLogHook(), *CONTENT.nodes)
    assert len(caplog.messages) == 2 and caplog.messages[0] == "Stage 2 of 3, content break: 450 steps on penguin"


def test_the_line_after_waits_until_everything_is_saved(hook, caplog) -> None:
    """An adapter's version in the registry is known only then."""
    two = Node(lambda a: (a, a), "raw", ["half", "curve"], name="content_break.train")
    with caplog.at_level(logging.INFO):
        hook.before_node_run(two)
        hook.after_node_run(two, DataCatalog(), {"half": 1, "curve": 1})
        hook.after_dataset_saved("half", 1, two)
        assert len(caplog.messages) == 1
        hook.after_dataset_saved("curve", 1, two)
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(("named", "expected"), [("__default__", "break_make penguin"), ("my own name", "my own name")])
def test_mlflows_run_is_named_by_what_it_is_about_unless_it_has_a_name(tracking, monkeypatch, named, expected) -> None:
    monkeypatch.setattr(run_log, "pipelines", KNOWN)
    monkeypatch.setattr(progress, "_speeds", {})
    hook = RunLogHook()
    hook._context = SimpleNamespace(params=PARAMETERS, env=None)
    about_content = Pipeline([Node(half, "params:content", "x", name="check")])
    with mlflow.start_run(run_name=named) as active:
        hook.before_pipeline_run({"pipeline_names": ["__default__"]}, about_content)
        manifest = pd.DataFrame(
            {"picture": ["a", "b"], "role": ["content", "style"], "concept": ["penguin", "knit"], "sha256": ["1", "2"]}
        )
        for name in ("manifest", "manifest", "other"):
            hook.after_dataset_loaded(name, manifest)
    os.environ.pop("B4M_STAGES", None)
    found = tracking.get_run(active.info.run_id)
    assert found.info.run_name == expected
    assert {given.dataset.name for given in found.inputs.dataset_inputs} == {"penguin", "knit"}
