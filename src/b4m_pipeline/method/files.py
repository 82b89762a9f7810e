"""Adapters in files that any diffusers pipeline loads."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from b4m_pipeline.common.tensor_files import save_tensors
from b4m_pipeline.method.adapter import URI_KEY, WEIGHTS_NAME, Adapter, AdapterError
from b4m_pipeline.method.whole import require_whole

_PREFIXES = ("unet.", "transformer.")


def save_adapter(adapter: Adapter, folder: Path) -> Path:
    """Write `pytorch_lora_weights.safetensors` into `folder`; returns the file's path."""
    if missing := [key for key in Adapter.REQUIRED if key not in adapter.metadata]:
        raise AdapterError(f"adapter {adapter.metadata.get('name', '?')} lacks the metadata {missing}")
    path = folder / WEIGHTS_NAME
    config = {f"{adapter.prefix}{key}": value for key, value in adapter.lora_config.items()}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(config, sort_keys=True)}
    own = {key: value for key, value in adapter.metadata.items() if key != URI_KEY}  # where it lies is no part of it
    metadata["b4m"] = json.dumps(own, sort_keys=True)
    tensors = {adapter.prefix + key: tensor.detach().cpu().float().contiguous() for key, tensor in adapter.tensors.items()}
    return save_tensors(tensors, path, metadata)


def load_adapter(path: Path) -> Adapter:
    """Read an adapter from its file or folder. Raises AdapterError if it is missing, damaged, not whole (`require_whole`) or
    another tool's."""
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS_NAME
    if not path.is_file():
        raise AdapterError(f"No adapter at {path}: run the pipeline that trains it first.")
    try:
        # Tensors are copied: as parts of the mapped file they would keep Windows from replacing or removing it.
        with safe_open(path, framework="pt") as handle:
            stored = handle.metadata() or {}
            tensors = {_plain(key): handle.get_tensor(key).clone() for key in handle.keys()}
        if "b4m" not in stored:
            raise AdapterError(f"{path} carries no frame: it was not written by this project and has no halves to combine.")
        about, config = json.loads(stored["b4m"]), json.loads(stored["lora_adapter_metadata"])
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is damaged ({error}): train it again or fetch another version.") from error
    config = {_plain(key): value for key, value in config.items()} if isinstance(config, dict) else {}
    adapter = Adapter(tensors, about, config)
    require_whole(adapter, str(path))
    return adapter


def _plain(key: str) -> str:
    """A key without the prefix for the denoiser."""
    return next((key.removeprefix(prefix) for prefix in _PREFIXES if key.startswith(prefix)), key)
