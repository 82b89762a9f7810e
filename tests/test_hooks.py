import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import click
import mlflow
import pandas as pd
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from kedro.framework.project import configure_project, pipelines
from kedro.framework.session import KedroSession
from kedro.pipeline import Node, Pipeline
from kedro_mlflow.framework.hooks import MlflowHook
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS

from b4m_pipeline.cli import cli
from b4m_pipeline.common.locks import FolderLock
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.hooks import PrerequisitesHook, _locks_of_pairs, git_commit
from b4m_pipeline.inputs.params import ConceptParams
from b4m_pipeline.inputs.staleness import StaleInputError
from b4m_pipeline.method.adapter import AdapterError
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.registry.adapters import adapter_uri
from b4m_pipeline.registry.store import sqlite_uri
from b4m_pipeline.training.params import MakeParams
from tests.conftest import PLAIN_MAKE, TINY_FRAME

ROOT = Path(__file__).parents[1]
HAS_GPU, HAS_MPS = torch.cuda.is_available(), torch.backends.mps.is_available()
PARAMETERS = {
    "frame": TINY_FRAME | {"targets": ["to_k", "to_v"]},
    "make": {"steps": 1, "batch_size": 2, "learning_rate": 1e-3} | PLAIN_MAKE,
}


def train(base_model: BaseModelParams, frame: FrameParams, make: MakeParams) -> int:
    if make.batch_size == 11:
        raise KeyboardInterrupt
    if make.batch_size == 13:
        raise AdapterError("13 brings bad luck: set make.batch_size to another number")
    return make.batch_size


@pytest.fixture
def project(tmp_path: Path, tiny_sdxl: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Path:
    """A project with our settings and mlflow.yml and a pipeline of one node; the working directory is below it."""
    root = tmp_path / "project"
    (root / "conf/base").mkdir(parents=True)
    (root / "conf/local").mkdir()
    (root / "somewhere").mkdir()
    shutil.copy(ROOT / "conf/base/mlflow.yml", root / "conf/base")
    (root / "pyproject.toml").write_text(
        '[tool.kedro]\npackage_name = "b4m_pipeline"\nproject_name = "t"\nkedro_init_version = "1.7.0"\n'
    )
    base_model = {"base_model": {"path": str(tiny_sdxl), "resolution": 32}}
    (root / "conf/base/parameters.yml").write_text(yaml.safe_dump(PARAMETERS | base_model))
    (root / "conf/base/catalog.yml").write_text(
        "size: {type: json.JSONDataset, filepath: data/size.json}\n"
        "made_adapter: {type: b4m_pipeline.datasets.registry.RegisteredAdapterDataset, filepath: data/made, "
        "save_args: {alias: candidate, "
        "trial: {alias: trial, break_steps: 200, make_steps: 75}, inference: {guidance_scale: 7.5}}}\n"
    )
    shutil.copy(empty_store, root / "mlflow.db")

    def register_pipelines() -> dict[str, Pipeline]:
        inputs = ["params:base_model", "params:frame", "params:make"]
        node = Node(train, inputs=inputs, outputs="size", name="train", tags=["training"])
        return {"__default__": Pipeline([node])}

    registry = types.ModuleType("registry_of_test")
    registry.register_pipelines = register_pipelines
    monkeypatch.setitem(sys.modules, "registry_of_test", registry)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(root / "somewhere")
    configure_project("b4m_pipeline")
    pipelines.configure("registry_of_test")
    yield root
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)
    configure_project("b4m_pipeline")


def kedro(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def runs(project: Path) -> list:
    client = mlflow.MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    return client.search_runs([e.experiment_id for e in client.search_experiments()])


def test_a_run_keeps_its_parameters_field_by_field_and_its_code_version(project) -> None:
    result = kedro("run", "--params=make.steps=3")
    assert result.exit_code == 0, result.output
    (run,) = runs(project)
    assert run.info.status == "FINISHED"
    assert run.data.params["make.steps"] == "3"
    assert run.data.params["frame.rank"] == "4"
    assert run.data.params["make.optimizer"] == "riemannian_adamw"  # a default that no file names
    assert "make" not in run.data.params
    assert run.data.tags["code_version"].startswith("0.1.0")
    assert run.info.artifact_uri.startswith((project / "mlartifacts").as_uri())
    assert not (project / "somewhere" / "mlflow.db").exists()


def test_parameters_are_sent_together_and_once(project, monkeypatch) -> None:
    sent, send = [], mlflow.log_params
    monkeypatch.setattr(mlflow, "log_params", lambda params: sent.append(params) or send(params))
    monkeypatch.setattr(mlflow, "log_param", lambda *_: pytest.fail("one by itself"))
    assert kedro("run").exit_code == 0
    (run,) = runs(project)
    names = [name for params in sent for name in params]
    assert sorted(names) == sorted(run.data.params) and "make.steps" in names and max(map(len, sent)) <= 100


def test_a_copied_project_has_its_own_runs(project, monkeypatch) -> None:
    assert kedro("run").exit_code == 0
    copy = project.with_name("a copy 100%")
    shutil.copytree(project, copy)
    mlflow.set_tracking_uri(None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(copy / "somewhere")
    result = kedro("run")
    assert result.exit_code == 0, result.output
    client = mlflow.MlflowClient(sqlite_uri(copy / "mlflow.db"))
    found = client.search_runs([client.get_experiment_by_name("b4m_pipeline").experiment_id])
    assert len(found) == 2 and len(runs(project)) == 1
    assert all(run.info.artifact_uri.startswith((copy / "mlartifacts").as_uri()) for run in found)


def test_sessions_of_one_process_are_runs_of_their_own(project) -> None:
    """As in a notebook: a run that stayed active would take the next session's parameters, and refuse them."""
    for steps in (3, 4):
        with KedroSession.create(project_path=project, runtime_params={"make": {"steps": steps}}) as session:
            session.run()
        assert mlflow.active_run() is None
    assert sorted(run.data.params["make.steps"] for run in runs(project)) == ["3", "4"]
    assert {run.info.status for run in runs(project)} == {"FINISHED"}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("mkae.steps=3", "Error: mkae: there is no such parameter, did you mean 'make'?"),
        ("make.stepz=3", "Error: make.stepz: there is no such parameter, did you mean 'steps'?"),
        ("make.steps=0", "Error: make.steps: input should be greater than or equal to 1, got 0"),
        ("base_model.path=nowhere/at/all", "base_model.path 'nowhere/at/all': there is no such file"),
        ("base_model.path=some/model", "'some/model' is not in this machine's cache"),
        ("frame.targets=[to_x]", "to_x"),
        ("frame.rank=4096,frame.alpha=4096", "4096"),
        ("base_model.vae=nowhere/at/all", "base_model.vae 'nowhere/at/all': there is no such file"),
        pytest.param(
            "make.device=mps", "make.device is mps, and torch", marks=pytest.mark.skipif(HAS_MPS, reason="it is there")
        ),
        pytest.param("make.device=cuda", "make.device is cuda", marks=pytest.mark.skipif(HAS_GPU, reason="a GPU is there")),
    ],
)
def test_bad_input_is_one_error_before_anything_is_trained_or_logged(project, params, message, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = kedro("run", f"--params={params}")
    assert result.exit_code == 1
    assert result.output.count("Error: ") == 1
    assert message in result.output
    assert "Traceback" not in result.output
    assert {file.name for file in (project / "data").rglob("*")} <= {".lock"}
    assert runs(project) == []


def test_one_run_at_a_time_in_a_data_folder(project, monkeypatch) -> None:
    monkeypatch.chdir(project)
    other = FolderLock(Path("data"))
    other.acquire("kedro run --pipelines=library", "")
    result = kedro("run")
    assert result.exit_code == 1 and runs(project) == []
    told = f"Error: data is in use by another process, {os.getpid()} (since "
    assert told in result.output and "kedro run --pipelines=library). Wait for it or end it, or give this run" in result.output
    assert kedro("run", "--params=data=elsewhere").exit_code == 0
    assert (project / "elsewhere/.lock").is_file()
    (project / "conf/base/globals.yml").write_text("data: third\n")
    (project / "conf/base/parameters_more.yml").write_text("data: ${globals:data}\n")
    assert kedro("run").exit_code == 0
    assert (project / "third/.lock").is_file()
    (project / "conf/base/globals.yml").write_text("data: data\n")
    other.release()
    assert kedro("run").exit_code == 0 and kedro("run").exit_code == 0
    assert not (project / "data/.lock.json").exists()


def test_processes_that_share_a_benchmark_lock_their_pairs_alone() -> None:
    from tests.test_conf import load

    def locked(part: str | None) -> set[Path]:
        return {lock.path for lock in _locks_of_pairs({"benchmark": load("base")["benchmark"] | {"part": part}})}

    first, second = locked("1/2"), locked("2/2")
    assert first and second and not first & second and first | second == locked(None)
    assert all(path.parent.name == "benchmark" for path in first)
    assert _locks_of_pairs({"benchmark": {"pairs": 3}}) == []


def test_a_data_folder_that_the_catalog_does_not_know_is_refused(project) -> None:
    (project / "conf/base/parameters_more.yml").write_text("data: elsewhere\n")
    result = kedro("run")
    assert (
        result.exit_code == 1 and "data is 'elsewhere' in parameters.yml, and the catalog's folder is 'data'" in result.output
    )


def test_relative_paths_count_from_the_project_wherever_kedro_is_started(project, tiny_sdxl) -> None:
    shutil.copytree(tiny_sdxl, project / "models/base")
    here = Path.cwd()
    assert here != project
    assert kedro("run", "--params=base_model.path=models/base").exit_code == 0
    assert kedro("run", "--params=base_model.path=models/none").exit_code == 1
    assert Path.cwd() == here
    assert (project / "data/size.json").is_file() and list(here.iterdir()) == []


@pytest.mark.parametrize("again", [False, True])
def test_an_interrupted_run_counts_as_killed(project, again) -> None:
    """Also in a notebook, where the next session finds it still active."""
    if again:
        with (
            pytest.raises(KeyboardInterrupt),
            KedroSession.create(project_path=project, runtime_params={"make": {"batch_size": 11}}) as session,
        ):
            session.run()
        with KedroSession.create(project_path=project) as session:
            session.run()
        assert sorted(run.info.status for run in runs(project)) == ["FINISHED", "KILLED"]
    else:
        result = kedro("run", "--params=make.batch_size=11")
        assert result.exit_code == 1 and "Stopped. The same command goes on" in result.output
        assert [run.info.status for run in runs(project)] == ["KILLED"]
    assert mlflow.active_run() is None


def test_a_run_whose_process_is_gone_is_ended_by_the_next(project) -> None:
    assert kedro("run").exit_code == 0
    (run,) = runs(project)
    assert run.data.tags["process.lock"] == str(project / "data/.lock") and run.data.tags["process.id"] == str(os.getpid())
    mlflow.MlflowClient(f"sqlite:///{project / 'mlflow.db'}").update_run(run.info.run_id, "RUNNING")
    assert kedro("run").exit_code == 0
    assert sorted(run.info.status for run in runs(project)) == ["FINISHED", "KILLED"]


def test_parameters_of_other_pipelines_are_checked_too(project, monkeypatch) -> None:
    register = sys.modules["registry_of_test"].register_pipelines

    def with_another() -> dict[str, Pipeline]:
        other = Pipeline([Node(lambda seed: seed, inputs="params:seed", outputs="kept", name="other")])
        return register() | {"other": other}

    monkeypatch.setattr(sys.modules["registry_of_test"], "register_pipelines", with_another)
    assert kedro("run", "--pipelines=other", "--params=seed=1").exit_code == 0
    result = kedro("run", "--pipelines=other", "--params=seed=1,make.stepz=3")
    assert result.exit_code == 1
    assert "stepz" in result.output
    for seed in ("1.5", "-1", "abc", "true"):
        result = kedro("run", "--pipelines=other", f"--params=seed={seed}")
        assert result.exit_code == 1
        assert "Error: seed: input should be" in result.output


def test_checkpoints_of_finished_trainings_go_when_the_run_has_succeeded(project) -> None:
    (project / "conf/base/parameters_more.yml").write_text(yaml.safe_dump({"checkpoints": str(project / "kept")}))
    register = sys.modules["registry_of_test"].register_pipelines

    def register_with_checkpoints() -> dict[str, Pipeline]:
        reader = Node(lambda checkpoints: checkpoints, inputs="params:checkpoints", outputs="kept", name="reader")
        return {"__default__": register()["__default__"] + Pipeline([reader])}

    sys.modules["registry_of_test"].register_pipelines = register_with_checkpoints
    pipelines.configure("registry_of_test")
    (project / "kept").mkdir()
    others = {"content_break-cup-1.done.safetensors", "joint_make-cup-ink-2.safetensors"}  # not trained now, not finished
    for name in ("joint_make-cup-ink-1.done.safetensors", *others):
        (project / "kept" / name).touch()
    assert kedro("run", "--params=make.batch_size=13").exit_code == 1
    assert len(list((project / "kept").iterdir())) == 3
    assert kedro("run").exit_code == 0
    assert {file.name for file in (project / "kept").iterdir()} == others


def test_a_stage_may_keep_its_last_finished_checkpoint(project, tmp_path) -> None:
    hook = PrerequisitesHook()
    hook._checkpoints, hook._kept, hook._trained = str(tmp_path), {"joint_make"}, ["joint_make", "content_break"]
    for age, name in enumerate(("joint_make-a-1", "joint_make-a-2", "content_break-a-3", "style_break-b-4")):
        file = tmp_path / f"{name}.done.safetensors"
        file.touch()
        os.utime(file, (age, age))
    (tmp_path / "joint_make-a-4.safetensors").touch()
    hook.after_pipeline_run()
    assert sorted(file.name for file in tmp_path.glob("*.safetensors")) == [
        "joint_make-a-2.done.safetensors",
        "joint_make-a-4.safetensors",
        "style_break-b-4.done.safetensors",  # this run has not trained any style
    ]


def test_what_an_earlier_run_left_is_checked_and_what_this_run_makes_is_not(tiny_adapter) -> None:
    concepts = {kind: ConceptParams(path=kind, name=name, token="snq") for kind, name in (("content", "cup"), ("style", "oil"))}
    hook = PrerequisitesHook()
    hook.after_dataset_loaded("made_adapter", tiny_adapter)  # in a process of ParallelRunner's
    hook._parameters, hook._left_before = concepts | {"frame": FrameParams(**TINY_FRAME)}, {"made_adapter", "manifest"}
    table = pd.DataFrame({"role": ["content"], "concept": ["hat"], "token": ["snq"], "sha256": ["0"]})
    for name, data in (("made_adapter", tiny_adapter), ("manifest", table)):
        with pytest.raises(StaleInputError, match=f"{name}: its (content|style) is"):
            hook.after_dataset_loaded(name, data)
    hook.after_dataset_loaded("reconstructed_adapter", tiny_adapter)
    hook.after_dataset_loaded("counterparts", {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("server: 5\n", "mlflow.yml: server must be a group of settings, got 5"),
        ("tracking: {experiment: [a]}\n", "mlflow.yml: experiment must be a group of settings"),
        ("trackng: {}\n", "mlflow.yml: trackng: there is no such parameter, did you mean 'tracking'?"),
        ("ui: {port: [1]}\n", "mlflow.yml: ui.port: "),
        ("server: {mlflow_tracking_uri: @x}\n", "mlflow.yml, line 1, column 31: no valid YAML"),
    ],
)
def test_an_mlflow_yml_that_is_none_is_one_error(project, text, said) -> None:
    (project / "conf/base/mlflow.yml").write_text(text)
    result = kedro("run")
    assert result.exit_code == 1 and result.output.count("Error: ") == 1, result.output
    assert said in result.output and "Traceback" not in result.output


def test_a_tracking_server_that_is_away_is_one_error(project, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    result = kedro("run")
    assert result.exit_code == 1
    assert "Error: MLflow's tracking store http://127.0.0.1:9 cannot be used" in result.output
    assert not (project / "data").exists()


def test_an_error_of_a_node_fails_the_run_and_ends_in_its_message(project) -> None:
    result = kedro("run", "--params=make.batch_size=13")
    assert result.exit_code == 1
    assert result.output.rstrip().endswith("Error: 13 brings bad luck: set make.batch_size to another number")
    (run,) = runs(project)
    assert run.info.status == "FAILED"


def saved_in_another_thread(adapter_folder: Path):
    """A pipeline whose node gives an adapter, which Kedro saves."""
    from b4m_pipeline.method.files import load_adapter

    def give(make: MakeParams):
        return load_adapter(adapter_folder)

    return Pipeline([Node(give, inputs="params:make", outputs="made_adapter", name="give")])


@pytest.mark.parametrize("options", [["--async"], ["--runner=ThreadRunner"], ["--runner=ThreadRunner", "--async"]])
def test_what_another_thread_registers_belongs_to_the_pipelines_run(project, tiny_adapter, monkeypatch, options) -> None:
    from b4m_pipeline.method.files import save_adapter

    save_adapter(tiny_adapter, project / "given")
    register = sys.modules["registry_of_test"].register_pipelines
    both = {"__default__": register()["__default__"] + saved_in_another_thread(project / "given")}
    monkeypatch.setattr(sys.modules["registry_of_test"], "register_pipelines", lambda: both)
    result = kedro("run", *options)
    assert result.exit_code == 0, result.output
    (run,) = runs(project)
    version = mlflow.MlflowClient().get_model_version_by_alias("b4m-make-cup-ink", "trial")
    assert run.info.status == "FINISHED" and version.run_id == run.info.run_id and version.description
    assert run.data.params["make.steps"] == "1"


def test_an_adapter_can_be_registered_later(project, tiny_adapter) -> None:
    from b4m_pipeline.method.files import save_adapter

    folder = project / "data/adapter"
    save_adapter(tiny_adapter, folder)
    result = kedro("register", str(folder))
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "models:/b4m-make-cup-ink/1" == adapter_uri(folder)
    signature = mlflow.models.get_model_info(adapter_uri(folder)).signature
    assert {param.name: param.default for param in signature.params}["guidance_scale"] == 7.5  # as a run's own
    aliases = mlflow.MlflowClient().get_registered_model("b4m-make-cup-ink").aliases
    assert aliases == {"trial": 1}  # two steps
    result = kedro("register", str(folder), "--alias=candidate")
    assert mlflow.MlflowClient().get_registered_model("b4m-make-cup-ink").aliases == {"trial": 1, "candidate": 2}
    (own, _) = runs(project)
    assert own.data.tags["process.lock"] == str(folder / ".lock")


def test_two_processes_may_make_the_experiment_at_once(project, monkeypatch) -> None:
    original, calls = MlflowHook.after_context_created, []

    def late(self, context) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise MlflowException("Experiment(name=t) already exists", RESOURCE_ALREADY_EXISTS)
        original(self, context)

    monkeypatch.setattr(MlflowHook, "after_context_created", late)
    assert kedro("run").exit_code == 0 and len(calls) == 2


def test_the_run_command_is_kedros_own_with_all_its_options() -> None:
    from kedro.framework.cli.project import run

    ours = cli.commands["run"]
    assert [param.name for param in ours.params] == [param.name for param in run.params]
    assert isinstance(ours, click.Command)


def test_git_commit_is_that_of_the_projects_own_checkout(tmp_path) -> None:
    def git(*command: str) -> None:
        author = {f"GIT_{who}_{what}": "x@x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        subprocess.run(["git", *command], cwd=tmp_path, check=True, env=os.environ | author, capture_output=True)

    assert git_commit(tmp_path) is None
    git("init")
    assert git_commit(tmp_path) is None
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    commit = git_commit(tmp_path)
    assert len(commit) == 40
    (tmp_path / "a").write_text("2")
    assert git_commit(tmp_path) == f"{commit}-dirty"
    (tmp_path / "inside").mkdir()
    assert git_commit(tmp_path / "inside") is None
