"""Models of the Hugging Face Hub: can they be had from here? Asked once, before a run, and answered in one error.

The libraries that load models ask for every file, try six times, and blame the file that they asked for first.
"""

from collections.abc import Iterator
from pathlib import Path

TIMEOUT = 10.0
"""Seconds that the Hub may take to answer."""
CONFIG, WEIGHTS = ("config.json",), ("model.safetensors", "model.safetensors.index.json")
"""Files that stand for a model of transformers, or a part of one of diffusers."""


class HubError(ValueError):
    """A model of the Hugging Face Hub that cannot be had; the message names the parameter, the model and what to do."""


def require_model(parameter: str, path: str, files: tuple[str, ...], revision: str | None = None) -> None:
    """Raise HubError unless `path` is a local file or folder, or a Hub id one of whose `files` is in the cache or can be had.

    parameter: as the message calls it. Of several files, none of which is cached, the Hub need only know the model.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    if Path(path).expanduser().exists():
        return
    try:
        if any(isinstance(try_to_load_from_cache(path, file, revision=revision), str) for file in files):
            return
        get_hf_file_metadata(hf_hub_url(path, files[0], revision=revision), timeout=TIMEOUT)  # which does not try again
    except HFValidationError as error:
        raise HubError(
            f"{parameter} {path!r}: there is no such file or folder, nor can it be an id of the Hugging Face Hub"
        ) from error
    except EntryNotFoundError as error:
        if len(files) == 1:
            raise HubError(
                f"{parameter}: {path!r} on the Hugging Face Hub has no {files[0]}, so it is no such model"
            ) from error
    except Exception as error:  # the client lets its HTTP library's errors through, which have no class in common with its own
        raise HubError(f"{parameter}: {reason(error, path, revision) or error}") from error


def reason(error: BaseException, path: str | None = None, revision: str | None = None) -> str | None:
    """What the Hub has to do with an error, in sentences for a user, None: nothing. Libraries hide its errors behind theirs.

    path, revision: of the model that was asked for, where they are known."""
    from huggingface_hub import constants, errors

    name = repr(path) if path else "what is needed of it"
    missing = f"{name} is not in this machine's cache ({constants.HF_HUB_CACHE})"
    for cause in _chain(error):
        match cause:
            case errors.OfflineModeIsEnabled():
                return f"{missing}, and HF_HUB_OFFLINE keeps it from being fetched. {_other_ways(path, revision)}"
            case errors.GatedRepoError():
                return (
                    f"{name} is gated on the Hugging Face Hub: accept its licence at {constants.ENDPOINT}/{path or ''}, then "
                    "log in with `hf auth login`, or set HF_TOKEN"
                )
            case errors.RepositoryNotFoundError():
                return (
                    f"there is no folder {name} here, and the Hugging Face Hub shows no such model: is the name right? A "
                    "private one needs `hf auth login`, or HF_TOKEN"
                )
            case errors.RevisionNotFoundError():
                return f"{name} has no revision {revision!r} on the Hugging Face Hub: name one of its commits, tags or branches"
            case errors.FileMetadataError():
                return (
                    f"{missing}, and what answers at {constants.ENDPOINT} is not the Hugging Face Hub: is a proxy in between?"
                )
            case errors.HfHubHTTPError() if not isinstance(cause, errors.EntryNotFoundError):
                status = cause.response.status_code
                return f"{missing}, and the Hugging Face Hub answers {status}: try later. {_other_ways(path, revision)}"
        if type(cause).__module__.split(".")[0].startswith("httpx"):
            return (
                f"{missing}, and the Hugging Face Hub ({constants.ENDPOINT}) cannot be reached: "
                f"{cause or type(cause).__name__}. Is there a network, or a proxy to be set? {_other_ways(path, revision)}"
            )
    return None


def _other_ways(path: str | None, revision: str | None) -> str:
    """How to have a model without a network."""
    at = f" --revision {revision}" if revision else ""
    return (
        f"Offline: run `hf download {path or 'ID'}{at} --local-dir FOLDER` where there is a network, bring FOLDER here and "
        "name it in place of the id (and no revision); or bring that machine's cache (HF_HOME) and set HF_HUB_OFFLINE=1"
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
