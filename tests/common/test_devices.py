"""Which device is used, and what is said if it is not there."""

import pytest
import torch

from b4m_pipeline.common.devices import DTYPES, has_fast_bf16, pick_device


@pytest.mark.parametrize("there", [False, True])
def test_auto_takes_a_gpu_where_there_is_one(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert pick_device() == pick_device("auto") == ("cuda" if there else "cpu")
    assert pick_device("cpu") == "cpu"


def test_a_gpu_that_is_asked_for_and_absent_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no usable GPU: set it to auto or cpu"):
        pick_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("cuda") == "cuda"


def test_half_precision_is_fast_where_the_device_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert has_fast_bf16("cuda") and not has_fast_bf16("cpu")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert has_fast_bf16("cpu")


def test_every_precision_of_the_parameters_has_a_number_format():
    from b4m_pipeline.training.trainer import resolve_precision

    assert {resolve_precision(name, "cpu") for name in ("auto", "no", "bf16", "fp16")} <= DTYPES.keys()
    assert DTYPES["no"] is torch.float32
