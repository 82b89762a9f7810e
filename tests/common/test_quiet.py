import logging
import sys
import warnings

import pytest

from b4m_pipeline.common.quiet import Dropped, hush, hush_bars


@pytest.fixture
def own_filters():
    """What `hush` sets up for the process is as before after the test."""
    shown, names = warnings.showwarning, ("py.warnings", "bitsandbytes.backends.cpu.ops")
    before = {name: list(logging.getLogger(name).filters) for name in names}
    yield
    logging.captureWarnings(False)
    warnings.showwarning = shown
    for name, filters in before.items():
        logging.getLogger(name).filters = filters


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("\x1b[33mAdd type hints to the `predict` method to enable data validation", False),
        ("Any type hint is inferred as AnyType, and MLflow", False),
        ("this model is deprecated and gives other pictures from now on", True),
    ],
)
def test_warnings_that_mean_nothing_are_left_out_whatever_filters_a_library_sets(own_filters, caplog, message, said) -> None:
    hush()
    hush()  # from Kedro's start and from the settings
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)  # into the log, in this block
        warnings.warn(message, UserWarning, stacklevel=1)
    assert (message in caplog.text) == said


def test_errors_come_through_and_so_do_other_warnings_of_the_same_logger(own_filters, caplog) -> None:
    hush()
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: No module named 'kernels'")
    logger.warning("the weights are damaged")
    logger.error("Failed to load CPU gemm_4bit_forward, and without it nothing works")
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    assert sum(isinstance(each, Dropped) for each in logger.filters) == 1


def test_bars_of_parts_are_left_out_and_downloads_keep_one(monkeypatch) -> None:
    import diffusers.utils.logging
    import transformers.utils.logging

    bars = sys.modules["huggingface_hub.utils.tqdm"]
    monkeypatch.setattr(bars, "progress_bar_states", {})
    hush_bars()
    assert not diffusers.utils.logging.is_progress_bar_enabled() and not transformers.utils.logging.is_progress_bar_enabled()
    shown = [name for name in ("http_get", "snapshot_download", "snapshot_download.transfer", "other")
             if not bars.are_progress_bars_disabled(f"huggingface_hub.{name}")]  # fmt: skip
    assert shown == ["http_get", "snapshot_download"]
