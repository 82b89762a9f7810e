"""Checkpoints as safetensors: tensors plus a JSON skeleton, written atomically, read without pickle."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from b4m_pipeline.common.whole_files import whole_file

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint is damaged or belongs to another run."""


def _flatten(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Replace every tensor in a nest of dicts, lists and scalars by a reference into `tensors`."""
    if isinstance(value, torch.Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().to("cpu", copy=True).contiguous()
        return {"@": key}
    if isinstance(value, dict):
        return {"d": [[key, _flatten(item, tensors)] for key, item in value.items()]}  # keys may be integers
    if isinstance(value, list | tuple):
        return {"l": [_flatten(item, tensors) for item in value]}
    return {"v": value}


def _restore(node: dict, tensors: dict[str, torch.Tensor]) -> Any:
    if "@" in node:
        return tensors[node["@"]]
    if "d" in node:
        return {key: _restore(item, tensors) for key, item in node["d"]}
    if "l" in node:
        return [_restore(item, tensors) for item in node["l"]]
    return node["v"]


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a nest of dicts, lists, tensors and JSON scalars. A kill at any moment leaves the old file or the new one."""
    tensors: dict[str, torch.Tensor] = {}
    skeleton = json.dumps(_flatten(state, tensors))
    with whole_file(path, sole=True) as own:
        save_file(tensors, own, metadata={"skeleton": skeleton})
        with open(own, "r+b") as handle:  # Windows flushes no file that is open for reading alone
            os.fsync(handle.fileno())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote; tensors are on the CPU. Raises CheckpointError if the file is damaged."""
    try:  # tensors are copied: as parts of the mapped file they would keep Windows from replacing it
        with safe_open(path, framework="pt") as handle:
            tensors = {key: handle.get_tensor(key).clone() for key in handle.keys()}
            skeleton = json.loads(handle.metadata()["skeleton"])
        return _restore(skeleton, tensors)
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is not a readable checkpoint ({error}). Delete it to start anew.") from error


def save_progress(path: Path, fingerprint: str, step: int, parts: dict[str, Any]) -> None:
    """Write the state of `parts` (modules, optimizers: whatever has a state_dict) after `step` steps."""
    states = {name: part.state_dict() for name, part in parts.items()}
    save_checkpoint(path, {"fingerprint": fingerprint, "step": step, "states": states})


def resume_progress(path: Path, fingerprint: str, parts: dict[str, Any]) -> int:
    """Bring `parts` back from `path`, in place; returns the steps done. 0, and nothing is touched, if there is no such file
    or it has another fingerprint: the latter is said aloud, and the next checkpoint takes its place."""
    if not path.exists():
        return 0
    state = load_checkpoint(path)
    if state.get("fingerprint") != fingerprint:
        logger.warning("%s belongs to other data or parameters: training starts anew", path)
        return 0
    for name, part in parts.items():
        part.load_state_dict(state["states"][name])
    logger.info("Resuming %s at step %d", path.stem, state["step"])
    return state["step"]
