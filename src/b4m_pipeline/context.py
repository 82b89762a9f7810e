"""What Kedro reads of a project: configuration whose errors name file and place, parameters that are all checked, and those of
--params."""

import copy
import io
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from kedro.config import OmegaConfigLoader
from kedro.framework.context import KedroContext
from kedro.framework.project import pipelines
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError
from yaml.parser import ParserError
from yaml.scanner import ScannerError

from b4m_pipeline.common.config import shown
from b4m_pipeline.common.presets import with_preset
from b4m_pipeline.prerequisites import check_parameters

QUOTING = "put text that holds one of {}[]:,&*!|>'\"%@`# into quotation marks"


_OF_WRITING = (ParserError, ScannerError)
"""Against these quotation marks may help; not against a key that comes twice or a tag that is not known."""


class ConfigError(ValueError):
    """A configuration file cannot be read, or what it says cannot be put together."""


class ConfigLoader(OmegaConfigLoader):
    """Kedro's own, with the environment's settings for the parameter `memory` in place; what is wrong with a file is one line
    that says where. A session asks ten times for what it reads once: putting files together takes a third of a second."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._known: dict[tuple[str, str], dict[str, Any]] = {}
        super().__init__(*args, **kwargs)

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Raises ConfigError."""
        found = self._read(key)
        return with_preset(found, self.runtime_params or {}) if key == "parameters" else found

    def presets(self) -> dict[int, dict[str, Any]]:
        """GB -> the parameters with this environment's settings for it, however `memory` is set."""
        parameters = self._read("parameters")
        given = {name: value for name, value in (self.runtime_params or {}).items() if name != "memory"}
        return {size: with_preset(parameters, given, size) for size in parameters.get("presets") or {}}

    def _read(self, key: str) -> dict[str, Any]:
        if key in self:  # set, not read
            return super().__getitem__(key)
        asked = key, repr((self.env, self.runtime_params))
        try:
            if asked not in self._known:
                self._known[asked] = super().__getitem__(key)
            return copy.deepcopy(self._known[asked])
        except (YAMLError, UnicodeDecodeError, OmegaConfBaseException, RecursionError, TypeError, AttributeError) as error:
            said = next((fault for file in self._files(key) if (fault := fault_of(file))), None)
            raise ConfigError(said or f"conf: {key} cannot be put together: {_place(error)}") from error

    def _files(self, key: str) -> Iterator[Path]:
        """Those that a key is read from."""
        folders = [Path(self.conf_source, each) for each in (self.base_env, self.env or self.default_run_env) if each]
        for folder, pattern in ((folder, pattern) for folder in folders for pattern in self.config_patterns.get(key, [])):
            yield from (file for file in sorted(folder.glob(pattern)) if file.suffix in (".yml", ".yaml", ".json"))


def fault_of(file: Path) -> str | None:
    """What is wrong with a configuration file by itself, and where; None if nothing is."""
    data = file.read_bytes()
    try:
        text = data.decode("utf-8")
        content = OmegaConf.load(io.StringIO(text))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return f"{file}, line {line}: byte 0x{data[error.start]:02x} is no UTF-8 text: save the file as UTF-8"
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        line = [*text.splitlines(), ""][mark.line] if mark else ""
        tab = mark and line[mark.column :].startswith("\t")
        cure = ": a tab stands there, indent with blanks" if tab else f": {QUOTING}" if isinstance(error, _OF_WRITING) else ""
        return f"{file}{place}: no valid YAML ({error.problem or error.context}){cure}"
    except (YAMLError, OmegaConfBaseException, RecursionError, ValueError) as error:
        return f"{file}: no valid YAML ({_place(error)})"
    return None if isinstance(content, DictConfig) else f"{file} must be a mapping, NAME: VALUE, line by line"


def _place(error: BaseException) -> str:
    """The first line of what went wrong, and the key at which it did."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{key}: {said}" if (key := getattr(error, "full_key", None)) else said


class ProjectContext(KedroContext):
    """Kedro's own; its parameters are those of all pipelines, so that a typo never passes unseen."""

    @property
    def params(self) -> dict[str, Any]:
        """With typed models in place. Raises WrongParameterError, ConfigError."""
        return check_parameters(self.config_loader["parameters"], dict(pipelines))


def read_params(context: click.Context, option: click.Parameter, text: Any) -> Any:
    """KEY=VALUE,KEY=VALUE, with values in YAML: a comma inside quotation marks or brackets is part of its value."""
    if not isinstance(text, str):
        return text
    parts, items = text.split(","), []
    while parts:
        for end in range(1, len(parts) + 1):
            if (item := _parsed(",".join(parts[:end]))) is not None:
                break
        else:
            raise click.ClickException(_told(option.opts[0], parts[0].strip()))
        items += [item] if item else []
        del parts[:end]
    return OmegaConf.to_container(OmegaConf.from_dotlist(items))


def _parsed(item: str) -> str | None:
    """One KEY=VALUE, or nothing for blanks; None if it is none."""
    key, equals, value = item.strip().partition("=")
    key = key.strip()
    if not item.strip():
        return ""
    if not key or not equals or "," in key:
        return None
    try:
        OmegaConf.to_container(OmegaConf.from_dotlist([f"{key}={value}"]))
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError):
        return None
    return f"{key}={value}"


def _told(option: str, item: str) -> str:
    key, equals, value = item.partition("=")
    if not equals or not key.strip():
        return (
            f"{option}: {shown(item)} is no KEY=VALUE. Put text with a comma into quotation marks, a list into brackets, "
            f"{option}='KEY=[one, two]'"
        )
    if not value.isprintable():
        return f"{option}: the value of {key} holds a control character: {shown(value)}"
    quoted = shlex.quote(f"{key.strip()}={json.dumps(value, ensure_ascii=False)}")
    return f"{option}: the value of {shown(key.strip())} cannot be read. Put it into quotation marks, {option}={quoted}"
