"""Hooks into Kedro: one run at a time in a data folder, MLflow with typed parameters and lineage, checks before a run."""

import os
import subprocess
import threading
from collections.abc import Generator, Set
from pathlib import Path
from typing import Any

import mlflow
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro_mlflow.config.kedro_mlflow_config import KedroMlflowConfig
from kedro_mlflow.framework.hooks import MlflowHook
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH
from pydantic import BaseModel, ValidationError

from b4m_pipeline import prerequisites
from b4m_pipeline.benchmark.params import BenchmarkParams
from b4m_pipeline.common.config import faults
from b4m_pipeline.common.locks import FolderLock
from b4m_pipeline.common.provenance import code_version
from b4m_pipeline.inputs import staleness
from b4m_pipeline.inputs.training_set import TrainingSet
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.registry import leftovers, runs
from b4m_pipeline.registry.store import TrackingError, limit_patience, open_store
from b4m_pipeline.training.checkpoint_files import finished_checkpoints


def git_commit(folder: Path) -> str | None:
    """The commit that `folder` is a checkout of, "-dirty" if tracked files differ; None where it is no checkout."""

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != folder.resolve():
            return None  # installed somewhere inside another project's checkout
        commit = git("rev-parse", "HEAD")
        return f"{commit}-dirty" if git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.CalledProcessError):
        return None


class ProjectHook:
    """One run at a time in a data folder, and at home in the project's folder, from which relative paths count."""

    def __init__(self) -> None:
        self._locks: list[FolderLock] = []
        self._signed: list[str | None] = []  # what MLflow's context was before
        self._before: Path | None = None

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        self._home, self._loader = context.project_path, context.config_loader

    @hook_impl(wrapper=True)
    def before_pipeline_run(self, run_params: dict[str, Any]) -> Generator[None, Any, Any]:
        """Go home and lock, before all other hooks. Raises BusyError if another process is at work, WrongParameterError if
        parameters and catalog name two data folders."""
        self._leave()  # of a run of this process that was interrupted, which no hook is told of
        self._before = Path.cwd()
        os.chdir(self._home)
        try:
            self._lock(run_params.get("pipeline_names") or ["__default__"])
            return (yield)
        except BaseException:
            self._leave()
            raise

    @hook_impl(wrapper=True)
    def after_pipeline_run(self) -> Generator[None, Any, Any]:
        """Unlock, after all other hooks."""
        try:
            return (yield)
        finally:
            self._leave()

    @hook_impl(wrapper=True)
    def on_pipeline_error(self) -> Generator[None, Any, Any]:
        """Likewise."""
        try:
            return (yield)
        finally:
            self._leave()

    def _lock(self, names: list[str]) -> None:
        parameters = self._loader["parameters"]
        data = (self._loader.runtime_params or {}).get("data") or self._loader["globals"].get("data", "data")
        prerequisites.check_data_folder(parameters, data)
        remedy = "Wait for it or end it, or give this run a folder of its own: --params=data=FOLDER"
        locks = [FolderLock(Path(data))]
        if names == ["benchmark"]:  # processes share it by pairs, and it reads nothing that other pipelines write
            locks = _locks_of_pairs(parameters) or locks
            remedy = "Wait for it or end it, or give this run other pairs (benchmark.part) or a folder of its own"
        for lock in locks:
            lock.acquire(f"kedro run --pipelines={','.join(names)}", remedy)
            self._locks.append(lock)
        self._signed.append(leftovers.sign(locks[0].path))

    def _leave(self) -> None:
        while self._signed:
            leftovers.unsign(self._signed.pop())
        while self._locks:
            self._locks.pop().release()
        if self._before is not None:
            os.chdir(self._before)
            self._before = None

    @property
    def lock(self) -> Path | None:
        """The first that is held."""
        return self._locks[0].path if self._locks else None


def _locks_of_pairs(parameters: dict[str, Any]) -> list[FolderLock]:
    """One for each pair that a benchmark is about; none if its parameters are not valid, which is said later."""
    try:
        benchmark = BenchmarkParams(**parameters.get("benchmark", {}))
    except ValidationError:
        return []
    return [FolderLock(Path(benchmark.folder), pair.name) for pair in benchmark.chosen_pairs()]


class TrackingHook(MlflowHook):
    """kedro-mlflow's hook; it checks the store first, logs typed parameters field by field, and the code's version."""

    def __init__(self, project: ProjectHook):
        super().__init__()
        self._project = project
        self._under_way = False
        self._found: dict[int, dict[str, str]] = {}  # parameters of the node that a thread is about to run
        self._logged: dict[str, str] = {}  # those of the run
        self._logging = threading.Lock()  # a store refuses what two threads log at once

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Set the tracking store up. Raises TrackingError if it cannot be used."""
        if self._under_way:  # a run of this process that was interrupted, in a notebook
            self._end("KILLED")
        limit_patience()
        if mlflow.active_run() is None:  # otherwise whoever started that run has chosen the store
            context.config_loader["mlflow"] = open_store(context.config_loader["mlflow"], context.project_path)
        self._project_path = context.project_path
        try:
            super().after_context_created(context)
        except ValidationError as error:
            raise TrackingError(f"mlflow.yml: {faults(error, KedroMlflowConfig)[0]}") from error
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            super().after_context_created(context)  # another process has made the experiment between look-up and creation

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Settle what earlier runs left behind, start the MLflow run and tag it with the code's version."""
        if self._project.lock and not self._already_active_mlflow:
            experiment = self.mlflow_config.tracking.experiment._experiment
            leftovers.clear(experiment.experiment_id, self._project.lock)
        self._under_way, self._logged = not self._already_active_mlflow, {}
        try:
            super().before_pipeline_run(run_params, pipeline, catalog)
            if self._is_mlflow_enabled:
                runs.hand_on(self.run_id)
                tags = {"code_version": code_version(), "git_commit": git_commit(self._project_path)}
                mlflow.set_tags({name: value for name, value in tags.items() if value})
        except Exception:  # Kedro tells no hook of an error before the first node
            self._end("FAILED")
            raise

    @hook_impl
    def before_node_run(self, node: Node, catalog: DataCatalog, inputs: dict[str, Any], is_async: bool) -> None:
        """Log the node's parameters, a Pydantic model as its fields."""
        if not hasattr(self, "mlflow_config"):  # in a process of ParallelRunner's, which has a hook of its own
            self._join()
        plain = {k: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for k, v in inputs.items()}
        found = self._found[threading.get_ident()] = {}
        super().before_node_run(node, catalog, plain, is_async)
        with self._logging:
            new = [each for each in found.items() if each not in self._logged.items()]
            for begin in range(0, len(new), MAX_PARAMS_TAGS_PER_BATCH):
                mlflow.log_params(dict(new[begin : begin + MAX_PARAMS_TAGS_PER_BATCH]))
            self._logged |= found

    def _log_param(self, name: str, value: Any) -> None:
        """Put it by: kedro-mlflow asks the store for each by itself, hundreds of times a run."""
        if len(str(value)) > MAX_PARAM_VAL_LENGTH:
            super()._log_param(name, value)
        else:
            self._found[threading.get_ident()][name] = str(value)

    @hook_impl
    def after_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> None:
        """End the run. kedro-mlflow opens it once more for the nodes and ends it once: it would stay active, and a notebook's
        next session would log into it."""
        super().after_pipeline_run(run_params, pipeline, catalog)
        self._end("FINISHED")

    @hook_impl
    def on_pipeline_error(self, error: Exception, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> None:
        """End the run as FAILED."""
        super().on_pipeline_error(error, run_params, pipeline, catalog)
        self._end("FAILED")

    def _end(self, status: str) -> None:
        """End the run, and what is nested in it, unless whoever called has begun it."""
        runs.hand_on(None)
        if self._under_way:
            runs.end_active(status)
        self._under_way = False

    def _join(self) -> None:
        """Take part in the run that was handed on; without one, log nothing."""
        self.run_id, self.mlflow_config = runs.current_run(), KedroMlflowConfig()
        self._is_mlflow_enabled = self.run_id is not None
        self.flatten, self.long_params_strategy = True, "tag"  # as in mlflow.yml


class PrerequisitesHook:
    """Refuses a run that could not end well, before anything is trained or logged, and what an earlier run left for another."""

    _left_before: Set[str] = frozenset()
    """Datasets that this run reads and does not make."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        self._context = context

    @hook_impl
    def before_pipeline_run(self, pipeline: Pipeline) -> None:
        """Check parameters and base model. Raises ValueError's subclasses."""
        parameters = self._context.params
        inputs = pipeline.inputs()
        prerequisites.check_folders(parameters, inputs)
        if "params:base_model" in inputs:
            breaks = [name for name in ("content_break", "style_break") if f"params:{name}" in inputs]
            preserving = prerequisites.check_preservation(parameters, breaks)
            frame = parameters["frame"] if "params:frame" in inputs else None
            prerequisites.check_base_model(parameters["base_model"], frame, preserving)
            prerequisites.check_devices(parameters)
            trained = [name for name in (*breaks, "make") if f"params:{name}" in inputs]
            prerequisites.check_starts(parameters, breaks)
            prerequisites.check_optimizers(parameters, trained)
            prerequisites.check_objectives(parameters, trained)
            if "params:ingestion" in inputs:
                prerequisites.check_buckets(parameters["base_model"], parameters["ingestion"])
            prerequisites.check_memory(parameters, trained, self._presets)
        if "params:compose" in inputs and any("reconstructed_adapter" in node.inputs for node in pipeline.nodes):
            prerequisites.check_halves(parameters["compose"].methods)
        for name in ("captioning", "evaluation"):
            if f"params:{name}" in inputs:
                prerequisites.check_clip(f"{name}.clip", parameters[name].clip)
        if "params:captioning" in inputs:
            prerequisites.check_captioner(parameters["captioning"].vision_language_model)
        self._parameters, self._left_before = parameters, set(inputs)
        self._checkpoints = parameters.get("checkpoints")
        stages = {"content_break": "content_break", "style_break": "style_break", "make": "joint_make"}
        trains = any("training" in node.tags for node in pipeline.nodes)
        self._trained = [stem for name, stem in stages.items() if trains and f"params:{name}" in inputs]
        self._kept = {stem for name, stem in stages.items() if getattr(parameters.get(name), "keep_checkpoint", False)}

    def _presets(self) -> dict[int, dict[str, Any]]:
        found = self._context.config_loader.presets()
        return {size: prerequisites.check_parameters(own, dict(pipelines)) for size, own in found.items()}

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str, data: Any) -> None:
        """Raise StaleInputError if what an earlier run left is of another content, style or frame than this run."""
        if dataset_name not in self._left_before:
            return
        concepts = {kind: self._parameters[kind] for kind in ("content", "style") if kind in self._parameters}
        if isinstance(data, Adapter):
            staleness.require_adapter(dataset_name, data, concepts, self._parameters["frame"])
        elif isinstance(data, TrainingSet) or dataset_name == "manifest":
            table = data.table if isinstance(data, TrainingSet) else data
            staleness.require_table(dataset_name, table, concepts)

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Remove the checkpoints of finished trainings of this run's stages: their adapters are stored now. Until here a run
        that was killed in a later stage finds them. Of a stage that keeps its own, the newest stays."""
        folder, stems = Path(self._checkpoints or ""), self._trained if self._checkpoints else []
        for stem in stems:
            finished = finished_checkpoints(folder, stem)
            for file in finished[:-1] if stem in self._kept else finished:
                file.unlink(missing_ok=True)
