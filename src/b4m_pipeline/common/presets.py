"""Settings by the memory of a GPU: an environment's `presets`, of which the parameter `memory` chooses one."""

from typing import Any


class PresetError(ValueError):
    """A memory that the environment has no settings for."""


def with_preset(parameters: dict[str, Any], given: dict[str, Any], memory: int | None = None) -> dict[str, Any]:
    """Parameters, without `presets`, with the settings for `memory` (GB; None: the parameter of this name; null there: none).
    given: what the user has set for this run, which counts more. Raises PresetError if there are no settings for it."""
    plain = {name: value for name, value in parameters.items() if name != "presets"}
    presets, wanted = parameters.get("presets") or {}, memory or parameters.get("memory")
    if wanted is None:
        return plain
    if wanted not in presets:
        known = f"settings for {', '.join(map(str, presets))} (GB)" if presets else "no settings by memory"
        raise PresetError(f"memory is {wanted!r}, and this environment has {known}: use one of these, or null")
    return _merged(_merged(plain, presets[wanted]), given)


def _merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries, the second over the first."""
    found = dict(values)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(found.get(key), dict)
        found[key] = _merged(found[key], value) if both else value
    return found
