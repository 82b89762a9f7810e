"""Kedro's settings of this project."""

import os
import warnings

from kedro.config import OmegaConfigLoader
from omegaconf.resolvers import oc

from b4m_pipeline.common.presets import with_preset
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


class ConfigLoader(OmegaConfigLoader):
    """Kedro's, with the environment's settings for the parameter `memory` in place."""

    def __getitem__(self, key):
        found = super().__getitem__(key)
        return with_preset(found, self.runtime_params or {}) if key == "parameters" else found

    def presets(self):
        """GB -> the parameters with this environment's settings for it, however `memory` is set."""
        parameters = super().__getitem__("parameters")
        given = {name: value for name, value in (self.runtime_params or {}).items() if name != "memory"}
        return {size: with_preset(parameters, given, size) for size in parameters.get("presets") or {}}


CONFIG_LOADER_CLASS = ConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": "base",
    "default_run_env": "local",
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**", "**/mlflow*"]},
    "merge_strategy": {"parameters": "soft", "globals": "soft"},  # an environment names only what it changes
    "custom_resolvers": {"oc.env": oc.env},
}
