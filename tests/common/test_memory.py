import logging
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from b4m_pipeline.common import memory


def test_a_process_peak_grows_with_what_is_held_and_stays():
    before = memory.peak_gib("cpu")
    held = torch.ones(2**27)  # 512 MiB, written to
    grown = memory.peak_gib("cpu")
    del held
    assert before > 0.02 and grown - before > 0.1
    assert memory.peak_gib("cpu") > grown - 0.01  # kernels count pages in batches


def test_a_stage_on_a_cpu_reports_the_peak_of_its_process(caplog):
    entries = []
    with (
        caplog.at_level(logging.DEBUG, "b4m_pipeline"),
        memory.reported_peak("make", "cpu", lambda *entry: entries.append(entry)),
    ):
        assert entries == []
    ((metrics, step),) = entries
    assert step == 0 and list(metrics) == ["process_peak_memory_gib"]
    assert f"this process has held at most {metrics['process_peak_memory_gib']:.2f} GiB" in caplog.text


def test_a_stage_on_a_gpu_reports_its_own_peak(monkeypatch, caplog):
    held = {"peak": 7 * 2**30}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: held.update(peak=0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: held["peak"])
    entries = []
    with caplog.at_level(logging.DEBUG, "b4m_pipeline"), memory.reported_peak("make", "cuda", lambda *e: entries.append(e)):
        held["peak"] = max(held["peak"], 3 * 2**30)
    assert entries == [({"peak_memory_gib": 3.0}, 0)]
    assert "make: at most 3.00 GiB of GPU memory" in caplog.text


def test_a_stage_that_fails_reports_nothing():
    entries = []
    with pytest.raises(RuntimeError), memory.reported_peak("make", "cpu", lambda *e: entries.append(e)):
        raise RuntimeError
    assert entries == []


def test_apples_gpus_report_what_the_process_holds_of_them(monkeypatch):
    freed, entries = [], []
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: freed.append(True))
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 5 * 2**30)
    with memory.reported_peak("make", "mps", lambda *entry: entries.append(entry)):
        assert freed == [True]
    assert entries == [({"peak_memory_gib": 5.0}, 0)]


def test_windows_has_another_name_for_a_process_peak(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)  # importing it fails there
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(peak_wset=3 * 2**30))
    assert memory.peak_gib("cpu") == 3.0
