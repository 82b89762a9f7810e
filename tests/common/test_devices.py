"""Which device and which number format are used, and what is said if they are not there."""

import pytest
import torch

from b4m_pipeline.common.devices import (
    DTYPES,
    DeviceError,
    check_precision,
    drawing_dtype,
    encoding_dtype,
    has_fast_bf16,
    pick_device,
    resolve_precision,
    threads_of_a_half,
)
from b4m_pipeline.common.tensor_files import Stored

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
SMALL, LARGE = 1_000_000_000, 4_000_000_000


@pytest.fixture
def machine(monkeypatch):
    """Sets which GPUs torch finds."""

    def has(cuda: bool = False, mps: bool = False, macos: int = 15) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: macos >= major)

    return has


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"), [(False, False, "cpu"), (True, False, "cuda"), (False, True, "mps"), (True, True, "cuda")]
)
def test_auto_takes_a_gpu_where_there_is_one(machine, cuda, mps, chosen):
    machine(cuda, mps)
    assert pick_device() == pick_device("auto") == pick_device(chosen) == chosen
    assert pick_device("cpu") == "cpu"


def test_a_device_that_is_asked_for_and_absent_is_an_error(machine):
    machine()
    for device in ("cuda", "mps"):
        with pytest.raises(DeviceError, match=f"make.device is {device}, and torch finds no such device here: use auto or cpu"):
            pick_device(device, "make.device")
    machine(mps=True)
    with pytest.raises(DeviceError, match="use auto or mps or cpu"):
        pick_device("cuda")


def test_half_precision_is_fast_where_the_device_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert has_fast_bf16("cuda") and not has_fast_bf16("cpu")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert has_fast_bf16("cpu")
    assert resolve_precision("auto", "cpu") == "bf16"


def test_apples_gpus_train_in_float32_unless_told_otherwise(machine):
    machine(mps=True, macos=14)
    assert DTYPES[resolve_precision("auto", "mps")] is torch.float32
    for precision in ("no", "bf16", "fp16"):
        assert resolve_precision(precision, "mps") == precision
        check_precision(precision, "mps")
    machine(mps=True, macos=13)
    with pytest.raises(DeviceError, match="make.precision is bf16, which needs macOS 14"):
        check_precision("bf16", "mps", "make.precision")
    with pytest.raises(DeviceError, match="make.precision is fp16, which needs a GPU"):
        check_precision("fp16", "cpu", "make.precision")


def test_gpus_draw_in_half_precision():
    assert {device: drawing_dtype(device) for device in ("cpu", "cuda", "mps")} == {
        "cpu": torch.float32,
        "cuda": torch.float16,
        "mps": torch.float16,
    }


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (None, F32),
        (Stored(F32, LARGE), F32),
        (Stored(BF16, SMALL), F32),
        (Stored(F16, LARGE), BF16),
        (Stored(BF16, LARGE), BF16),
    ],
)
def test_cpus_draw_in_half_precision_what_is_large_and_stored_in_it(stored, expected):
    assert drawing_dtype("cpu", F16, stored) is expected
    assert drawing_dtype("cuda", F16, stored) is F16


@pytest.mark.parametrize(
    ("stored", "cuda", "slow_cpu", "fast_cpu"),
    [
        (None, F32, F32, F32),
        (Stored(F32, LARGE), F32, F32, F32),
        (Stored(BF16, SMALL), BF16, F32, BF16),
        (Stored(F16, SMALL), F16, F32, F32),
        (Stored(BF16, LARGE), BF16, BF16, BF16),
        (Stored(F16, LARGE), F16, BF16, BF16),
    ],
)
def test_encoders_keep_the_format_of_their_files_where_it_is_good_for_the_device(stored, cuda, slow_cpu, fast_cpu, monkeypatch):
    assert encoding_dtype("cuda", stored) is cuda
    for fast, expected in ((False, slow_cpu), (True, fast_cpu)):
        monkeypatch.setattr("b4m_pipeline.common.devices.has_fast_bf16", lambda device, fast=fast: fast)
        assert encoding_dtype("cpu", stored) is expected


def test_every_precision_of_the_parameters_has_a_number_format():
    assert {resolve_precision(name, "cpu") for name in ("auto", "no", "bf16", "fp16")} <= DTYPES.keys()
    assert DTYPES["no"] is torch.float32


@pytest.mark.parametrize(
    ("every", "named", "shared", "own"), [(8, None, False, 4), (1, None, False, 1), (8, "8", False, 8), (8, None, True, 3)]
)
def test_a_half_has_half_of_the_threads(monkeypatch, every, named, shared, own):
    monkeypatch.setattr("b4m_pipeline.common.devices.all_threads", lambda: every)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: shared)
    monkeypatch.setenv("OMP_NUM_THREADS", named or "")
    assert threads_of_a_half() == own
