"""Which store a run uses, and the one quick error if it does not answer."""

import os
import time
from pathlib import Path

import pytest

from b4m_pipeline.registry.store import TrackingError, check_store, limit_patience, resolve_store


def test_a_relative_sqlite_file_lies_in_the_project(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    config = {"server": {"mlflow_tracking_uri": "sqlite:///mlflow.db"}, "tracking": {"experiment": {"name": "x"}}}
    resolved = resolve_store(config, tmp_path)
    assert resolved["server"]["mlflow_tracking_uri"] == f"sqlite:///{tmp_path}/mlflow.db"
    location = {"artifact_location": str(tmp_path / "mlartifacts")}
    assert resolved["tracking"]["experiment"] == {"name": "x", "create_experiment_kwargs": location}
    assert config["server"] == {"mlflow_tracking_uri": "sqlite:///mlflow.db"}


@pytest.mark.parametrize("uri", ["sqlite:///mine.db", "http://localhost:5000"])
def test_a_store_that_the_user_names_is_left_as_it_is(uri, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    config = {"server": {"mlflow_tracking_uri": uri}}
    assert resolve_store(config, Path("project")) == config


def test_a_store_that_answers_passes(store) -> None:
    check_store(store)


def test_a_server_that_is_not_there_is_one_quick_error_without_its_password() -> None:
    start = time.monotonic()
    with pytest.raises(TrackingError, match="cannot be used") as error:
        check_store("http://me:secret@127.0.0.1:9")
    assert time.monotonic() - start < 15
    assert "MLFLOW_TRACKING_URI" in str(error.value)
    assert "secret" not in str(error.value)


def test_a_database_that_is_none_is_an_error(tmp_path) -> None:
    (tmp_path / "broken.db").write_bytes(b"no database" * 100)
    with pytest.raises(TrackingError, match="broken.db"):
        check_store(f"sqlite:///{tmp_path / 'broken.db'}")


def test_the_users_own_patience_counts(monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    limit_patience()
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
