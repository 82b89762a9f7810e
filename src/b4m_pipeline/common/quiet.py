"""Other libraries' notices that mean nothing to who runs this project are left out, each by its own words or its own logger:
errors, and warnings that are not named here, come through."""

import logging
import os

_DEFAULTS = {
    # These three set their own loggers up when they are imported, so conf/logging.yml does not reach them.
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # a few small files each
}
_DROPPED = {
    "py.warnings": (
        "register_new_resolver",  # of Kedro's own
        "type hint is inferred as AnyType",  # of MLflow's and kedro-mlflow's own models
        "Add type hints to the `predict` method",
    ),
    "bitsandbytes.backends.cpu.ops": ("Failed to load CPU gemm_4bit_forward",),  # quicker on some CPUs
}
"""Logger -> parts of its warnings that are left out."""


class Dropped(logging.Filter):
    """Of a logger: drops warnings that have one of these parts."""

    def __init__(self, *parts: str):
        super().__init__()
        self._parts = parts

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING or not any(part in record.getMessage() for part in self._parts)


def hush() -> None:
    """Before the libraries are imported: settings that a user's environment does not name, and what is left out. Python's
    warnings go through the log: MLflow sets filters of its own for them."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    logging.captureWarnings(True)
    for name, parts in _DROPPED.items():
        own = logging.getLogger(name)
        if not any(isinstance(each, Dropped) for each in own.filters):
            own.addFilter(Dropped(*parts))


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
