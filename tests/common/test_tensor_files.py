import hashlib
import os
import stat
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from b4m_pipeline.common.tensor_files import Stored, save_tensors, stored_in

TENSORS = {"a": torch.arange(5, dtype=torch.float16), "b": torch.ones(2, 3), "number": torch.tensor(2.0)}
METADATA = {f"key {index}": "ä" * index for index in range(9)}


def test_it_is_what_the_library_reads(tmp_path):
    path = save_tensors(TENSORS, tmp_path / "new" / "x.safetensors", METADATA, "hash")
    read = load_file(path)
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[key], tensor) and read[key].dtype == tensor.dtype for key, tensor in TENSORS.items())
    with safe_open(path, framework="pt") as handle:
        own = handle.metadata()
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    assert own == METADATA | {"hash": "0x" + hashlib.sha256(raw[start:]).hexdigest()}
    assert start % 8 == 0 and raw[8:10] == b'{"'  # what readers of headers look for


def test_the_same_content_gives_the_same_bytes(tmp_path):
    backwards = [dict(reversed(part.items())) for part in (TENSORS, METADATA)]
    first = save_tensors(TENSORS, tmp_path / "1.safetensors", METADATA)
    second = save_tensors(backwards[0], tmp_path / "2.safetensors", backwards[1])
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.skipif(sys.platform == "win32", reason="no modes there")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_who_may_read_it_follows_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        path = save_tensors(TENSORS, tmp_path / "x.safetensors", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_nothing_is_left_of_what_cannot_be_written(tmp_path):
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(OSError, match="x.safetensors"):
        save_tensors(TENSORS, tmp_path / "x.safetensors", {})
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_weights_are_counted_by_headers_alone(tmp_path):
    one = save_tensors({"a.x": torch.ones(3, 4, dtype=torch.bfloat16), "b.x": torch.ones(20)}, tmp_path / "one", {})
    two = save_tensors({"a.y": torch.ones(15, dtype=torch.bfloat16)}, tmp_path / "two", {})
    assert stored_in([one, two]) == Stored(torch.bfloat16, 47)
    assert stored_in([one]) == Stored(torch.float32, 32)
    assert stored_in([one], lambda name: name.startswith("a.")) == Stored(torch.bfloat16, 12)
    whole = save_tensors({"a": torch.ones(3, dtype=torch.uint8)}, tmp_path / "whole", {})
    assert stored_in([]) is None and stored_in([whole]) is None
