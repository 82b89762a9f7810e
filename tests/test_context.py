"""Configuration files and parameters as Kedro is given them."""

from pathlib import Path

import pytest
from kedro.framework.project import configure_project
from kedro.framework.session import KedroSession

from b4m_pipeline.context import ConfigError, ConfigLoader, ProjectContext, fault_of
from b4m_pipeline.settings import CONFIG_LOADER_ARGS
from tests.test_startup import ROOT


def loader(folder: Path, **files: str | bytes) -> ConfigLoader:
    """Of a project with these files in conf/base, and an empty conf/local."""
    for name, content in files.items():
        file = folder / "conf/base" / f"{name}.yml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "conf/local").mkdir(parents=True)
    return ConfigLoader(str(folder / "conf"), **CONFIG_LOADER_ARGS)


def test_whole_files_are_read_as_ever(tmp_path) -> None:
    read = loader(tmp_path, parameters="a: 1\nb: ${a}\n", parameters_more="c: {d: ä}\n")["parameters"]
    assert read == {"a": 1, "b": 1, "c": {"d": "ä"}}


def test_a_fault_is_looked_for_in_the_environments_file_too(tmp_path) -> None:
    own = loader(tmp_path, parameters="a: 1\n")
    (tmp_path / "conf/local/parameters.yml").write_text("a: [1\n")
    with pytest.raises(ConfigError, match=r"conf/local/parameters\.yml, line 2, column 1: no valid YAML"):
        own["parameters"]
    assert fault_of(tmp_path / "conf/base/parameters.yml") is None


def test_globals_are_read_when_a_loader_is_made(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"globals\.yml, line 1, column 4: no valid YAML"):
        loader(tmp_path, globals="a: @b\n")


def test_files_are_put_together_once_and_nobody_changes_what_others_get(tmp_path, monkeypatch) -> None:
    own, read = loader(tmp_path, globals="x: 1", parameters="a: {b: '${globals:x}'}\n"), []
    monkeypatch.setattr(own, "_read_raw_config", lambda key, ask=own._read_raw_config: read.append(key) or ask(key))
    own["parameters"]["a"]["b"] = 5
    assert own["parameters"] == {"a": {"b": 1}} and read == ["parameters"]
    own.runtime_params = {"a": {"b": 3}}
    assert own["parameters"] == {"a": {"b": 3}}
    own["parameters"] = {"c": 4}
    assert own["parameters"] == {"c": 4}


def test_a_session_has_them(monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    configure_project("b4m_pipeline")
    from kedro.framework.project import settings

    assert (ProjectContext, ConfigLoader) == (settings.CONTEXT_CLASS, settings.CONFIG_LOADER_CLASS)
    with KedroSession.create(project_path=ROOT, runtime_params={"make": {"stepz": 3}}) as session:
        assert isinstance(session._get_config_loader(), ConfigLoader)
