"""Kedro's settings of this project."""

from omegaconf.resolvers import oc

from b4m_pipeline.common.quiet import hush

hush()  # before MLflow and Kedro's plugins are imported

from b4m_pipeline.context import ConfigLoader, ProjectContext  # noqa: E402
from b4m_pipeline.hooks import PrerequisitesHook, ProjectHook, TrackingHook  # noqa: E402
from b4m_pipeline.run_log import RunLogHook  # noqa: E402

_project = ProjectHook()
HOOKS = (RunLogHook(), TrackingHook(_project), PrerequisitesHook(), _project)  # the last one is called first

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
