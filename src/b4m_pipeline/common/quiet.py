"""Other libraries' notices that mean nothing to who runs this project are left out, each by its own words or its own logger:
errors, and warnings that are not named here, come through."""

import logging
import os
import warnings

_DEFAULTS = {
    # These three set their own loggers up when they are imported, so conf/logging.yml does not reach them.
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
_MEANINGLESS = (
    ".*register_new_resolver",  # of Kedro's own
    r".*type hint is inferred as AnyType",  # of MLflow's and kedro-mlflow's own models
    ".*Add type hints to the `predict` method",
)


_DROPPED = {"bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward"}
"""Logger -> how its warning begins: of a kernel that is quicker on some CPUs."""


class Dropped(logging.Filter):
    """Of a logger: drops a warning that begins with these words."""

    def __init__(self, beginning: str):
        super().__init__()
        self._beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING or not record.getMessage().startswith(self._beginning)


def hush() -> None:
    """Before the libraries are imported: settings that a user's environment does not name, and warnings at their import."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    for message in _MEANINGLESS:
        warnings.filterwarnings("ignore", message=message, category=UserWarning)
    for name, beginning in _DROPPED.items():
        own = logging.getLogger(name)
        if not any(isinstance(each, Dropped) for each in own.filters):
            own.addFilter(Dropped(beginning))


def hush_bars() -> None:
    """Leave out the bars that are drawn for each part of a model, a hundred in a run, and all but one of a download's."""
    import diffusers.utils.logging
    import transformers.utils.logging
    from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    if HF_HUB_DISABLE_PROGRESS_BARS is None:  # otherwise the user has decided
        disable_progress_bars()
        for shown in ("http_get", "xet_get", "snapshot_download"):
            enable_progress_bars(f"huggingface_hub.{shown}")
        disable_progress_bars("huggingface_hub.snapshot_download.transfer")
