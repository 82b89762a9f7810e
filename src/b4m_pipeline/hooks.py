"""Hooks into Kedro: MLflow with typed parameters and lineage, and checks before a run."""

import subprocess
from pathlib import Path
from typing import Any

import mlflow
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro_mlflow.config.kedro_mlflow_config import KedroMlflowConfig
from kedro_mlflow.framework.hooks import MlflowHook
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ValidationError

from b4m_pipeline import prerequisites
from b4m_pipeline.common.config import faults
from b4m_pipeline.common.provenance import code_version
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


class TrackingHook(MlflowHook):
    """kedro-mlflow's hook; it checks the store first, logs typed parameters field by field, and the code's version."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Set the tracking store up. Raises TrackingError if it cannot be used."""
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
        """Start the MLflow run and tag it with the code's version."""
        super().before_pipeline_run(run_params, pipeline, catalog)
        if self._is_mlflow_enabled:
            tags = {"code_version": code_version(), "git_commit": git_commit(self._project_path)}
            mlflow.set_tags({name: value for name, value in tags.items() if value})

    @hook_impl
    def before_node_run(self, node: Node, catalog: DataCatalog, inputs: dict[str, Any], is_async: bool) -> None:
        """Log the node's parameters, a Pydantic model as its fields."""
        plain = {k: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for k, v in inputs.items()}
        super().before_node_run(node, catalog, plain, is_async)

    @hook_impl
    def after_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> None:
        """End the run. kedro-mlflow opens it once more for the nodes and ends it once: it would stay active, and a notebook's
        next session would log into it."""
        super().after_pipeline_run(run_params, pipeline, catalog)
        while not self._already_active_mlflow and (run := mlflow.active_run()) and run.info.run_id == self.run_id:
            mlflow.end_run()


class PrerequisitesHook:
    """Refuses a run that could not end well, before anything is trained or logged."""

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
            prerequisites.check_optimizers(parameters, trained)
            prerequisites.check_objectives(parameters, trained)
            if "params:ingestion" in inputs:
                prerequisites.check_buckets(parameters["base_model"], parameters["ingestion"])
            prerequisites.check_memory(parameters, trained)
        if "params:compose" in inputs and any("reconstructed_adapter" in node.inputs for node in pipeline.nodes):
            prerequisites.check_halves(parameters["compose"].methods)
        for name in ("captioning", "evaluation"):
            if f"params:{name}" in inputs:
                prerequisites.check_clip(f"{name}.clip", parameters[name].clip)
        if "params:captioning" in inputs:
            prerequisites.check_captioner(parameters["captioning"].vision_language_model)
        self._checkpoints = parameters.get("checkpoints")
        stages = {"content_break": "content_break", "style_break": "style_break", "make": "joint_make"}
        trains = any("training" in node.tags for node in pipeline.nodes)
        self._trained = [stem for name, stem in stages.items() if trains and f"params:{name}" in inputs]
        self._kept = {stem for name, stem in stages.items() if getattr(parameters.get(name), "keep_checkpoint", False)}

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Remove the checkpoints of finished trainings of this run's stages: their adapters are stored now. Until here a run
        that was killed in a later stage finds them. Of a stage that keeps its own, the newest stays."""
        folder, stems = Path(self._checkpoints or ""), self._trained if self._checkpoints else []
        for stem in stems:
            finished = finished_checkpoints(folder, stem)
            for file in finished[:-1] if stem in self._kept else finished:
                file.unlink(missing_ok=True)
