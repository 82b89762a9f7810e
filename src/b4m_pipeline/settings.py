"""Kedro's settings of this project."""

import os
import warnings

from omegaconf.resolvers import oc

from b4m_pipeline.context import ConfigLoader, ProjectContext
from b4m_pipeline.hooks import PrerequisitesHook, ProjectHook, TrackingHook

# These two set their own loggers up when they are imported, so conf/logging.yml does not reach them.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

# Kedro's own, of no use to who runs it.
warnings.filterwarnings("ignore", message=".*register_new_resolver", category=UserWarning)

_project = ProjectHook()
HOOKS = (TrackingHook(_project), PrerequisitesHook(), _project)  # the last one is called first

# TrackingHook takes the place of kedro-mlflow's own. Telemetry is off here for the installed package; in the project's
# folder the file .telemetry says so to the command line, too.
DISABLE_HOOKS_FOR_PLUGINS = ("kedro_mlflow", "kedro-mlflow", "kedro-telemetry")

CONTEXT_CLASS = ProjectContext
CONFIG_LOADER_CLASS = ConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**", "**/mlflow*"]},
    "merge_strategy": {"parameters": "soft", "globals": "soft"},  # an environment names only what it changes
    "custom_resolvers": {"oc.env": oc.env},
}
