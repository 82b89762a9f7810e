"""Kedro dataset for an adapter that is kept on disk, logged to MLflow and registered there, in this order."""

import hashlib
import json
import logging
import tempfile
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from b4m_pipeline.datasets.adapter import WEIGHTS_NAME, AdapterDataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from b4m_pipeline.method.adapter import Adapter

logger = logging.getLogger(__name__)

RECORD_NAME = "registered.json"
URI_KEY = "registry_uri"  # as in b4m_pipeline.method.adapter, which imports torch

NAME_OF_KIND = {"content": "content", "style": "style", "reconstructed": "joined", "made": "make"}
_MODEL_TAG = "model_id"  # of the logged model that a version was made from: the registry does not always give it back
_REQUIREMENTS = ("accelerate", "diffusers", "peft", "safetensors", "torch", "transformers")
_LONG = ("params", "frame_config", "pictures")  # no tags: the first become the model's params, all are in the weights' file


class RegistrationError(ValueError):
    """An adapter could not be logged or registered; its weights are kept on disk."""


def registered_name(adapter: "Adapter", prefix: str = "b4m") -> str:
    """PREFIX-content-NAME, PREFIX-style-NAME, PREFIX-joined-CONTENT-STYLE or PREFIX-make-CONTENT-STYLE. Raises
    RegistrationError for other kinds."""
    kind = adapter.metadata["kind"]
    if kind not in NAME_OF_KIND:
        raise RegistrationError(f"adapters of the kind {kind!r} are not registered; {sorted(NAME_OF_KIND)} are")
    return f"{prefix}-{NAME_OF_KIND[kind]}-{adapter.metadata['name']}"


def adapter_uri(folder: Path) -> str | None:
    """The registry's version, "models:/NAME/VERSION", that the weights in `folder` are; None if they are in none."""
    record = Path(folder) / RECORD_NAME
    if not record.is_file():
        return None
    known = json.loads(record.read_text())
    return known["uri"] if known["sha256"] == _sha256(Path(folder) / WEIGHTS_NAME) else None


def register_adapter(
    folder: Path, *, alias: str = "candidate", prefix: str = "b4m", inference: dict[str, Any] | None = None
) -> dict[str, str]:
    """Log the adapter in `folder` with the diffusers flavor, in the active MLflow run or its own, and register it.

    alias: moved to the new version. inference: defaults of the logged model's `predict`, see `serving.predict_signature`. The
    version carries the adapter's lineage as tags and its card as description, the model its parameters. Returns the record,
    also written to registered.json: name, version, uri, run_id, sha256 of the weights. Raises RegistrationError; what was
    begun in the registry is taken back then.
    """
    import mlflow

    from b4m_pipeline.method.adapter import load_adapter
    from b4m_pipeline.registry.model_card import model_card

    adapter = load_adapter(folder)
    name = registered_name(adapter, prefix)
    weights = Path(folder) / WEIGHTS_NAME
    try:
        with nullcontext(mlflow.active_run()) if mlflow.active_run() else mlflow.start_run(run_name=name) as run:
            logged = _log(adapter, weights, name, inference or {})
            with _undone_on_error(name, logged.model_id) as client:
                tags = _tags(adapter) | {_MODEL_TAG: logged.model_id}
                number = mlflow.register_model(logged.model_uri, name, tags=tags).version
                card = model_card(adapter.metadata, f"models:/{name}/{number}", inference)
                client.update_model_version(name, number, card)
                client.set_registered_model_alias(name, alias, number)
    except Exception as error:  # stores and artifact stores raise what their libraries raise
        raise RegistrationError(
            f"{name} could not be registered in MLflow: {error}\n"
            f"The weights are kept in {folder}. When MLflow can be used again: kedro register {folder}"
        ) from error
    record = _record(folder, name, number, run.info.run_id)
    logger.info("Registered %s as %s", record["uri"], alias)
    return record


def fetch_adapter(source: str) -> "Adapter":
    """The adapter of "models:/NAME@ALIAS", "models:/NAME/VERSION" or a folder, with its version in the registry, where it has
    one, under "registry_uri". Raises RegistrationError if the registry has none such, AdapterError if the file is missing or
    damaged."""
    from b4m_pipeline.method.adapter import load_adapter

    if not source.startswith("models:/"):
        adapter, uri = load_adapter(Path(source).expanduser()), adapter_uri(Path(source).expanduser())
    else:
        import mlflow.diffusers
        from mlflow.exceptions import MlflowException

        try:
            uri = _version_uri(source)
            with tempfile.TemporaryDirectory() as folder:  # MLflow leaves what it fetches from a server where it was put
                adapter = load_adapter(Path(mlflow.diffusers.load_model(uri, dst_path=folder).adapter_path))
        except MlflowException as error:
            raise RegistrationError(f"{source} cannot be fetched from the registry: {error}") from error
    if uri:
        adapter.metadata[URI_KEY] = uri
    return adapter


def find_trained(kind: str, recipe_digest: str) -> "Adapter | None":
    """The newest registered adapter of this kind that was made from the same pictures, parameters, base model and code, with
    its version under "registry_uri". None if there is none, or if it cannot be had any more, which is said aloud."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    from b4m_pipeline.method.adapter import AdapterError

    wanted = f"tags.`recipe_digest` = '{recipe_digest}' and tags.`kind` = '{kind}'"
    try:
        versions = MlflowClient().search_model_versions(wanted)
    except MlflowException as error:
        logger.warning("The registry cannot be asked for an adapter of the same recipe: %s", error)
        return None
    for found in sorted(versions, key=lambda version: version.creation_timestamp, reverse=True):
        uri = f"models:/{found.name}/{found.version}"
        try:
            adapter = fetch_adapter(uri)
        except (RegistrationError, AdapterError, OSError) as error:
            logger.warning("%s was made from the same, and cannot be used: %s", uri, error)
            continue
        logger.info("%s was made from the same pictures, parameters and code: it is used, nothing is trained anew", uri)
        return adapter
    return None


def find_known(reuse: bool) -> "Callable[[str, str, str], Adapter | None] | None":
    """How a stage asks for an adapter of the same recipe, by kind, name and digest; None if it is not to ask."""
    return (lambda kind, name, digest: find_trained(kind, digest)) if reuse else None


def keep_registered(folder: Path, uri: str, alias: str) -> None:
    """Note beside the weights in `folder` that they are the registry's version "models:/NAME/VERSION", and move the alias to
    it. Raises RegistrationError."""
    import mlflow

    name, number = uri.removeprefix("models:/").rsplit("/", 1)
    client = mlflow.MlflowClient()
    try:
        version = client.get_model_version(name, number)
        client.set_registered_model_alias(name, alias, number)
        if mlflow.active_run():
            mlflow.set_tag(f"reused.{name}", uri)
    except Exception as error:  # as in register_adapter
        raise RegistrationError(f"{uri} could not be made {alias} in MLflow: {error}") from error
    _record(folder, name, number, version.run_id)


def _record(folder: Path, name: str, number: str, run_id: str) -> dict[str, str]:
    """Write registered.json beside the weights."""
    weights = Path(folder) / WEIGHTS_NAME
    record = {"name": name, "version": str(number), "uri": f"models:/{name}/{number}", "run_id": run_id}
    record["sha256"] = _sha256(weights)
    partial = weights.with_name(RECORD_NAME + ".partial")
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(weights.with_name(RECORD_NAME))
    return record


def _log(adapter: "Adapter", weights: Path, name: str, inference: dict[str, Any]):
    """Log it with our flavor of mlflow.diffusers' model. Requirements are given, so none are guessed."""
    from mlflow.models import Model

    from b4m_pipeline.registry import serving

    base = adapter.metadata["base_model"]
    return Model.log(
        artifact_path=None,
        flavor=serving,
        adapter_path=str(weights),
        base_model=str(Path(base).resolve()) if Path(base).is_dir() else base,
        name=name,
        signature=serving.predict_signature(adapter.metadata, inference),
        pip_requirements=[f"{package}=={version(package).split('+')[0]}" for package in _REQUIREMENTS],
        metadata=_tags(adapter),
        params=_flat(json.loads(adapter.metadata["params"])),
        tags=_tags(adapter),
    )


@contextmanager
def _undone_on_error(name: str, model_id: str) -> "Iterator":
    """Leaves no version without alias and no name without version behind, as far as the registry still answers."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    existed = bool(client.search_registered_models(f"name='{name}'"))
    try:
        yield client
    except BaseException:
        try:
            for begun in client.search_model_versions(f"name='{name}'"):
                if begun.tags.get(_MODEL_TAG) == model_id:
                    client.delete_model_version(name, begun.version)
            alone = not existed and not client.search_model_versions(f"name='{name}'")  # nobody else has registered here since
            if alone and client.search_registered_models(f"name='{name}'"):
                client.delete_registered_model(name)
            client.delete_logged_model(model_id)
        except MlflowException as error:
            logger.warning("What was begun for %s in the registry could not be taken back: %s", name, error)
        raise


def _version_uri(uri: str) -> str:
    """models:/NAME@ALIAS -> models:/NAME/VERSION as it is now: aliases move, parents do not. Others as they are."""
    from mlflow.tracking import MlflowClient

    name, found, alias = uri.removeprefix("models:/").partition("@")
    return f"models:/{name}/{MlflowClient().get_model_version_by_alias(name, alias).version}" if found else uri


def _tags(adapter: "Adapter") -> dict[str, str]:
    kept = {key: value for key, value in adapter.metadata.items() if key not in (*_LONG, URI_KEY) and value}
    base = json.loads(adapter.metadata["frame_config"]).get("base_model")  # which weights; the field base_model: where they lie
    return kept | ({"base_model_id": base} if base else {})


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return flat


def _sha256(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class RegisteredAdapterDataset(AdapterDataset):
    """Saves an adapter to a folder, then logs and registers it, see `register_adapter`; one that the registry has already is
    not registered twice, see `keep_registered`. Loads the folder, or where it
    has no weights the version that `load_args` names. A loaded adapter's metadata has its version under "registry_uri".

    Args:
        filepath: a local folder.
        save_args: prefix and alias of the registered model; inference, the defaults of its `predict`.
        load_args: model_uri, e.g. models:/b4m-content-koala@candidate.
    """

    def __init__(
        self,
        *,
        filepath: str,
        save_args: dict[str, Any] | None = None,
        load_args: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ):
        super().__init__(filepath=filepath, metadata=metadata)
        self._save_args = save_args or {}
        self._model_uri: str | None = (load_args or {}).get("model_uri")

    def save(self, data: "Adapter") -> None:
        (self._folder / RECORD_NAME).unlink(missing_ok=True)  # of the weights before these
        super().save(data)
        if uri := data.metadata.get(URI_KEY):  # fetched, not trained
            keep_registered(self._folder, uri, self._save_args.get("alias", "candidate"))
        else:
            register_adapter(self._folder, **self._save_args)

    def load(self) -> "Adapter":

        if super()._exists() or not self._model_uri:
            adapter, uri = super().load(), adapter_uri(self._folder)
        else:
            return fetch_adapter(self._model_uri)
        if uri:
            adapter.metadata[URI_KEY] = uri
        return adapter

    def _exists(self) -> bool:
        if super()._exists() or not self._model_uri:
            return super()._exists()
        import mlflow.models
        from mlflow.exceptions import MlflowException

        try:
            return mlflow.models.get_model_info(self._model_uri) is not None
        except MlflowException:
            return False

    def _describe(self) -> dict[str, Any]:
        return super()._describe() | {"save_args": self._save_args, "model_uri": self._model_uri}
