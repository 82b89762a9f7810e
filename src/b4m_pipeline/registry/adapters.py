"""Adapters in MLflow: logged, registered with their lineage, found again by recipe, fetched."""

import json
import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yaml import YAMLError

from b4m_pipeline.common.config import plain_alias, plain_name, plain_path, shown
from b4m_pipeline.common.provenance import CODE_KEY, LIBRARIES_KEY, Recipe, file_digest, flat
from b4m_pipeline.common.whole_files import write_whole
from b4m_pipeline.method.adapter import DIRECTIONS_KEY, URI_KEY, WEIGHTS_NAME, Adapter, AdapterError, example_prompt
from b4m_pipeline.registry.runs import current_run, run_of_work

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import Model
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

RECORD_NAME = "registered.json"
DIGEST_KEY = "weights_sha256"
"""Of the file of weights: metadata of a logged model, and a tag of its version in the registry."""
_VERSION = re.compile(r"models:/(?P<name>[^/@\s]+)(?:/(?P<number>[0-9]{1,9})|@(?P<alias>[\w-]+))")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # two letters or more: C:\ is a folder's
_LONGEST = 250  # bytes of a registered name: the SQL stores take 256 characters

NAME_OF_KIND = {"content": "content", "style": "style", "reconstructed": "joined", "made": "make", "merged": "merged"}
PROMPT_TAG = "prompt"
"""Tag of a version: a prompt that it answers to."""
MODEL_TAG = "model_id"
"""Tag of a version: the logged model that it was made from. The registry does not always give it back."""
UNFINISHED = "unfinished"
"""Tag of a version until its registration is finished: the alias that it is to have (see leftovers.py)."""
_REQUIREMENTS = ("accelerate", "diffusers", "peft", "safetensors", "torch", "transformers")
_LONG = ("params", "frame_config", DIRECTIONS_KEY, "pictures", CODE_KEY, LIBRARIES_KEY)
"""No tags: the first become the model's params, all are in the weights' file."""


class RegistrationError(ValueError):
    """An adapter could not be logged or registered; its weights are kept on disk."""


def registered_name(adapter: Adapter, prefix: str = "b4m") -> str:
    """PREFIX-content-NAME, PREFIX-style-NAME, or PREFIX-joined-CONTENT-STYLE, PREFIX-make-... or PREFIX-merged-.... Raises
    RegistrationError for other kinds, and for names that no registry takes."""
    kind = adapter.metadata["kind"]
    if kind not in NAME_OF_KIND:
        raise RegistrationError(f"adapters of the kind {kind!r} are not registered; {sorted(NAME_OF_KIND)} are")
    try:
        return plain_name(f"{plain_name(prefix)}-{NAME_OF_KIND[kind]}-{adapter.metadata['name']}", _LONGEST)
    except ValueError as error:
        raise RegistrationError(f"the registered name, {prefix!r} and the adapter's: {error}") from error


def adapter_uri(folder: Path) -> str | None:
    """The registry's version, "models:/NAME/VERSION", that the weights in `folder` are; None if they are in none. Raises
    RegistrationError if what stands beside them cannot be read."""
    record = Path(folder) / RECORD_NAME
    if not record.is_file():
        return None
    try:
        known = json.loads(record.read_bytes())
        uri, digest = known["uri"], known["sha256"]
        if not _VERSION.fullmatch(uri):
            raise ValueError(f"{shown(uri)} is no version in the registry")
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        said = f"{record} is damaged ({error}): remove it, and register the adapter again: kedro register {folder}"
        raise RegistrationError(said) from error
    return uri if digest == file_digest(Path(folder) / WEIGHTS_NAME) else None


def alias_of(adapter: Adapter, alias: str, trial: dict[str, Any] | None) -> str:
    """The alias for a version of the adapter: `alias`, or trial["alias"] if it was trained in fewer optimizer steps than
    trial["make_steps"], a half trial["break_steps"], so that a first look at a setting takes no finished adapter's place.
    Joined halves count as their content's half, merges as finished."""
    steps = json.loads(adapter.metadata["params"]).get("train", {}).get("steps")
    enough = trial["make_steps" if adapter.metadata["kind"] == "made" else "break_steps"] if trial else 0
    return trial["alias"] if trial and steps is not None and steps < enough else alias


def register_adapter(
    folder: Path,
    *,
    alias: str = "candidate",
    trial: dict[str, Any] | None = None,
    prefix: str = "b4m",
    inference: dict[str, Any] | None = None,
) -> dict[str, str]:
    """Log the adapter in `folder` with the diffusers flavor, in the MLflow run of this work or its own, and register it.

    alias, trial: see `alias_of`; the alias moves to the new version. inference: defaults of the logged model's `predict`, see
    `serving.predict_signature`. The version carries the adapter's lineage as tags and its card as description, the model its
    parameters. Returns the record, also written to registered.json: name, version, uri, run_id, sha256 of the weights. Raises
    AdapterError if the adapter is not whole, before anything is logged, and RegistrationError; what was begun in the registry
    is taken back then.
    """
    from b4m_pipeline.method.files import load_adapter
    from b4m_pipeline.registry.model_card import about_model, model_card

    adapter = load_adapter(folder)
    name = registered_name(adapter, prefix)
    try:
        alias = plain_alias(alias_of(adapter, alias, trial))
    except ValueError as error:
        raise RegistrationError(f"the alias {error}") from error
    weights = Path(folder) / WEIGHTS_NAME
    try:
        with run_of_work(name) as run_id:
            logged = _log(adapter, weights, name, inference or {}, run_id)
            with _undone_on_error(name, logged.model_id) as client:
                tags = _tags(adapter) | {MODEL_TAG: logged.model_id, DIGEST_KEY: file_digest(weights), UNFINISHED: alias}
                number = _new_version(client, logged, name, tags)
                card = model_card(adapter.metadata, f"models:/{name}/{number}", inference)
                client.update_model_version(name, number, card)
                if not client.get_registered_model(name).description:
                    client.update_registered_model(name, about_model(adapter.metadata))
                client.set_registered_model_alias(name, alias, number)
                client.delete_model_version_tag(name, number, UNFINISHED)
    except Exception as error:  # stores and artifact stores raise what their libraries raise
        raise RegistrationError(
            f"{name} could not be registered in MLflow: {error}\n"
            f"The weights are kept in {folder}. When MLflow can be used again: kedro register {folder}"
        ) from error
    record = _record(folder, name, number, run_id)
    logger.debug("Registered %s as %s", record["uri"], alias)
    return record


def fetch_adapter(source: str) -> Adapter:
    """The adapter of "models:/NAME@ALIAS", "models:/NAME/VERSION" or a folder, with its version in the registry, where it has
    one, under "registry_uri". Raises RegistrationError if the source is none of these or the registry has none such,
    AdapterError if the file is missing, damaged or not what was registered."""
    from b4m_pipeline.method.files import load_adapter

    uri: str | None
    if source.startswith("models:"):
        uri, adapter = _fetch_version(source)
    elif _SCHEME.match(source):
        raise RegistrationError(
            f"{shown(source)} names no adapter: give models:/NAME@ALIAS, models:/NAME/VERSION or a folder, without a scheme"
        )
    else:
        try:
            folder = Path(plain_path(source)).expanduser()
        except ValueError as error:
            raise AdapterError(f"No adapter at {shown(source)}: it {error}") from error
        adapter, uri = load_adapter(folder), adapter_uri(folder)
    if uri:
        adapter.metadata[URI_KEY] = uri
    return adapter


def find_version(source: str) -> "ModelVersion":
    """The registry's version that "models:/NAME@ALIAS" or "models:/NAME/VERSION" is now. Raises RegistrationError."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    if not (found := _VERSION.fullmatch(source)):
        raise RegistrationError(f"{shown(source)} names no version: give models:/NAME@ALIAS, models:/NAME/VERSION or a folder")
    client, name = MlflowClient(), found["name"]
    try:  # aliases move, parents do not
        version = client.get_model_version_by_alias(name, found["alias"]) if found["alias"] else None
        return version or client.get_model_version(name, found["number"])
    except MlflowException as error:
        raise RegistrationError(f"{source} cannot be fetched from the registry: {error}") from error


def _fetch_version(source: str) -> tuple[str, Adapter]:
    """A version's URI and adapter: the file of weights alone is read of what was logged with it, never its code."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    from b4m_pipeline.method.files import load_adapter

    version = find_version(source)
    uri = f"models:/{version.name}/{version.version}"
    try:
        with tempfile.TemporaryDirectory() as folder:  # MLflow leaves what it fetches from a server where it was put
            logged = download_artifacts(artifact_uri=uri, dst_path=folder)
            try:
                model = Model.load(logged)
            except (YAMLError, LookupError, TypeError, AttributeError, ValueError) as error:
                raise AdapterError(
                    f"{uri} is damaged, its file MLmodel cannot be read: {' '.join(str(error).split())}"
                ) from error
            try:
                return uri, load_adapter(logged_weights(Path(logged), model, version.tags.get(DIGEST_KEY)))
            except AdapterError as error:  # which knows the copy alone, a folder that is gone with the next line
                raise AdapterError(str(error).replace(str(Path(logged)), uri)) from error
    except MlflowException as error:
        raise RegistrationError(f"{source} cannot be fetched from the registry: {error}") from error


def logged_weights(folder: Path, model: "Model", digest: str | None = None) -> Path:
    """The file of weights of a logged model in `folder`. digest: what the registry has besides. Raises AdapterError unless it
    is the file that was logged, by its sha256."""
    try:
        place = model.flavors["diffusers"]["adapter_weights"]
        file = folder / place / WEIGHTS_NAME
        known = {str((model.metadata or {})[DIGEST_KEY]), digest} - {None}
    except (KeyError, TypeError) as error:
        raise AdapterError(f"{folder} is no adapter that this project has logged: it lacks {error}") from error
    if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
        raise AdapterError(f"{folder} holds no weights at {shown(place)}: fetch it again")
    if known != {file_digest(file)}:
        raise AdapterError(f"{file} is damaged: its digest is not the one that was logged. Fetch it again or register another")
    return file


def find_same(recipe: Recipe) -> Adapter | None:
    """The newest registered adapter that was made by the same recipe, with its version under "registry_uri". None if there is
    none, or if it cannot be had any more. The log says which it is, or what differs from the newest one of its name."""
    for uri, adapter in _versions(f"tags.`recipe_digest` = '{recipe.digest}' and tags.`kind` = '{recipe.kind}'"):
        logger.info("%s was made by the same recipe: it is used, nothing is trained anew", uri)
        return adapter
    for uri, adapter in _versions(f"tags.`name` = '{recipe.name}' and tags.`kind` = '{recipe.kind}'"):
        logger.info("%s %s is trained, as it differs from %s: %s", recipe.kind, recipe.name, uri, _told(recipe, adapter))
        break
    return None


def find_joined(recipe_digest: str) -> Adapter | None:
    """The newest registered pair of halves with this recipe digest, as `find_same` gives it."""
    return next((a for _, a in _versions(f"tags.`recipe_digest` = '{recipe_digest}' and tags.`kind` = 'reconstructed'")), None)


def _told(recipe: Recipe, adapter: Adapter) -> str:
    return "; ".join(recipe.differences(adapter.metadata)) or "what it started from changed"


def _versions(criterion: str) -> Iterator[tuple[str, Adapter]]:
    """Registered versions that can be had, newest first, with their adapters. Others are named in the log."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        versions = MlflowClient().search_model_versions(criterion)
    except MlflowException as error:
        logger.warning("The registry cannot be asked for an adapter of the same recipe: %s", error)
        return
    whole = [version for version in versions if UNFINISHED not in version.tags]
    for found in sorted(whole, key=lambda version: version.creation_timestamp, reverse=True):
        uri = f"models:/{found.name}/{found.version}"
        try:
            yield uri, fetch_adapter(uri)
        except (RegistrationError, AdapterError, OSError) as error:
            logger.warning("%s cannot be used: %s", uri, error)


def keep_registered(folder: Path, uri: str, alias: str) -> None:
    """Note beside the weights in `folder` that they are the registry's version "models:/NAME/VERSION", and move the alias to
    it. Raises RegistrationError."""
    import mlflow

    name, number = uri.removeprefix("models:/").rsplit("/", 1)
    client = mlflow.MlflowClient()
    try:
        version = client.get_model_version(name, number)
        client.set_registered_model_alias(name, alias, number)
        if run_id := current_run():
            client.set_tag(run_id, f"reused.{name}", uri)
    except Exception as error:  # as in register_adapter
        raise RegistrationError(f"{uri} could not be made {alias} in MLflow: {error}") from error
    _record(folder, name, number, version.run_id)


def _record(folder: Path, name: str, number: str, run_id: str) -> dict[str, str]:
    """Write registered.json beside the weights."""
    weights = Path(folder) / WEIGHTS_NAME
    record = {"name": name, "version": str(number), "uri": f"models:/{name}/{number}", "run_id": run_id}
    record["sha256"] = file_digest(weights)
    write_whole(weights.with_name(RECORD_NAME), json.dumps(record, indent=2) + "\n")
    return record


def _log(adapter: Adapter, weights: Path, name: str, inference: dict[str, Any], run_id: str):
    """Log it in the run with our flavor of mlflow.diffusers' model. Requirements are given, so none are guessed."""
    from mlflow.models import Model

    from b4m_pipeline.registry import serving

    base = adapter.metadata["base_model"]
    return Model.log(
        artifact_path=None,
        flavor=serving,
        run_id=run_id,
        adapter_path=str(weights),
        base_model=str(Path(base).resolve()) if Path(base).exists() else base,
        name=name,
        signature=serving.predict_signature(adapter.metadata, inference),
        pip_requirements=[f"{package}=={version(package).split('+')[0]}" for package in _REQUIREMENTS],
        metadata=_tags(adapter),
        params={key: str(value) for key, value in flat(json.loads(adapter.metadata["params"])).items()},
        tags=_tags(adapter),
    )


def _new_version(client: "MlflowClient", logged: Any, name: str, tags: dict[str, str]) -> str:
    """Register a logged model, as mlflow.register_model does, which prints lines of its own; returns the version's number."""
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
            raise
    number = str(client.create_model_version(name, logged.model_uri, tags=tags, model_id=logged.model_id).version)
    client.set_logged_model_tags(logged.model_id, {MLFLOW_MODEL_VERSIONS: json.dumps([{"name": name, "version": number}])})
    return number


@contextmanager
def _undone_on_error(name: str, model_id: str) -> "Iterator[MlflowClient]":
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
                if begun.tags.get(MODEL_TAG) == model_id:
                    client.delete_model_version(name, begun.version)
            alone = not existed and not client.search_model_versions(f"name='{name}'")  # nobody else has registered here since
            if alone and client.search_registered_models(f"name='{name}'"):
                client.delete_registered_model(name)
            client.delete_logged_model(model_id)
        except MlflowException as error:
            logger.warning("What was begun for %s in the registry could not be taken back: %s", name, error)
        raise


def _tags(adapter: Adapter) -> dict[str, str]:
    kept = {key: value for key, value in adapter.metadata.items() if key not in (*_LONG, URI_KEY) and value}
    base = json.loads(adapter.metadata["frame_config"]).get("base_model")  # which weights; the field base_model: where they lie
    prompt = example_prompt(adapter.metadata)
    return kept | ({"base_model_id": base} if base else {}) | ({PROMPT_TAG: prompt} if prompt else {})
