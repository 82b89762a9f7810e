"""The runner of `kedro run`: both breaks by one hand, all else Kedro's own."""

from types import SimpleNamespace

import pytest
from kedro.framework.hooks import hook_impl
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro_viz.integrations.kedro.hooks_utils import is_sequential_runner

from b4m_pipeline import runner
from b4m_pipeline.cli import run
from b4m_pipeline.library import halves
from b4m_pipeline.pipelines.break_template import BREAKS, break_pipeline
from b4m_pipeline.runner import SideBySideRunner

PARAMETERS = ("base_model", "frame", "content", "style", "content_break", "style_break", "seed", "checkpoints", "reuse")


class FakeHalves:
    """Remembers what it is asked, and gives names for halves."""

    made: list["FakeHalves"] = []

    def __init__(self, stages, checkpoints, reuse):
        self.stages, self.checkpoints, self.reuse = stages, checkpoints, reuse
        self.asked, self.closed, self.failing = [], 0, checkpoints == "bad"
        self.made.append(self)

    def result(self, name):
        self.asked.append(name)
        if self.failing:
            raise ValueError("diverged")
        return f"half {name}", "curve"

    def close(self):
        self.closed += 1


class Seen:
    def __init__(self):
        self.events = []

    @hook_impl
    def before_node_run(self, node, inputs):
        self.events.append(f"before {node.name}: {inputs.get('params:content_break') or inputs.get('params:style_break')}")

    @hook_impl
    def after_dataset_saved(self, dataset_name, data):
        self.events.append(f"saved {dataset_name}: {data}")


@pytest.fixture
def trial(monkeypatch):
    """Runs a pipeline; gives what was seen, what was asked for the halves, and the catalog."""
    monkeypatch.setattr(FakeHalves, "made", [])
    monkeypatch.setattr(halves, "Halves", FakeHalves)
    monkeypatch.setattr(runner, "stage_of", lambda *inputs, kind: (kind, *inputs))

    def go(pipeline: Pipeline, checkpoints: str = "folder"):
        seen, manager = Seen(), _create_hook_manager()
        manager.register(seen)
        given = {f"params:{name}": name for name in PARAMETERS} | {"params:checkpoints": checkpoints, "params:reuse": True}
        catalog = DataCatalog({name: MemoryDataset(value) for name, value in given.items()} | {"pictures": MemoryDataset("p")})
        try:
            SideBySideRunner().run(pipeline, catalog, manager)
        finally:
            both = FakeHalves.made[0] if FakeHalves.made else None
        return SimpleNamespace(events=seen.events, halves=both)

    return go


def whole(*kinds: str) -> Pipeline:
    encode = Node(lambda pictures: f"encoded {pictures}", inputs="pictures", outputs="training_set", name="encode")
    return Pipeline([encode]) + sum((break_pipeline(kind) for kind in kinds), start=Pipeline([]))


def test_both_halves_are_asked_for_at_the_first_and_hooks_see_each_node(trial) -> None:
    told = trial(
        whole("content", "style") + Pipeline([Node(lambda a, b: None, ["content_adapter", "style_adapter"], None, name="join")])
    )
    about = ("encoded p", "base_model", "frame")
    assert told.halves.stages == {f"{kind}_break": (kind, *about, kind, f"{kind}_break", "seed") for kind in BREAKS.values()}
    assert (told.halves.checkpoints, told.halves.reuse) == ("folder", True)
    assert told.halves.asked == ["content_break", "style_break"] and told.halves.closed == 1
    assert [event for event in told.events if "break" in event or "adapter" in event] == [
        "before content_break.train_half: content_break",
        "saved content_adapter: half content_break",
        "saved content_break.loss_curve: curve",
        "before style_break.train_half: style_break",
        "saved style_adapter: half style_break",
        "saved style_break.loss_curve: curve",
    ]


def test_an_error_ends_what_is_under_way(trial) -> None:
    with pytest.raises(ValueError, match="diverged"):
        trial(whole("content", "style"), "bad")
    assert FakeHalves.made[0].closed == 1


def test_one_break_alone_is_kedros(trial, monkeypatch) -> None:
    monkeypatch.setattr("b4m_pipeline.library.reuse.train_or_reuse", lambda stage, checkpoints, reuse: ("half", "curve"))
    monkeypatch.setattr("b4m_pipeline.pipelines.break_template.stage_of", lambda *inputs, kind: kind)
    told = trial(whole("style"))
    assert told.halves is None and "saved style_adapter: half" in told.events


def test_it_is_the_commands_default_and_sequential_to_kedro_viz() -> None:
    (option,) = [option for option in run.params if option.name == "runner"]
    assert option.default == f"{SideBySideRunner.__module__}.{SideBySideRunner.__name__}"
    assert is_sequential_runner({"runner": str(SideBySideRunner())})
