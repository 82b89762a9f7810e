import subprocess
import sys
import webbrowser

import mlflow
import pytest

from b4m_pipeline.registry import addresses


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:///mlflow.db", ("http://127.0.0.1:5000", False)),
        ("https://example.org/mlflow/", ("https://example.org/mlflow", True)),
    ],
)
def test_the_page_is_the_tracking_servers_or_that_of_kedro_mlflow_ui(uri, expected) -> None:
    assert addresses.base_of(uri, "127.0.0.1", "5000") == expected


def test_a_run_ends_with_addresses_of_runs_and_models_not_of_the_first_page(tracking) -> None:
    with mlflow.start_run() as run:
        pass
    found = addresses.lines(run.info.run_id, "127.0.0.1", "5000")
    assert (
        found[0]
        == f"Run: http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id} (after `kedro mlflow ui`)"
    )
    assert found[1].startswith("Models: http://127.0.0.1:5000/#/models?")


def test_the_address_is_said_before_the_page_is_served(tracking, monkeypatch) -> None:
    said: list[str] = []
    commands: list[list[str]] = []

    class Server:
        def __init__(self, command: list[str], **options):
            commands.append([*said, *command])

        def wait(self) -> None:
            """Until it ends."""

    monkeypatch.setattr(subprocess, "Popen", Server)
    addresses.serve_page("127.0.0.1", "5005", "7", said.append)
    (command,) = commands
    assert command[0].splitlines()[0] == "Runs: http://127.0.0.1:5005/#/experiments/7/runs?workflowType=machine_learning"
    assert command[1:5] == [sys.executable, "-m", "mlflow", "ui"] and "--port=5005" in command


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups to end")
def test_what_a_server_has_started_ends_with_it(tmp_path) -> None:
    worker = (
        f"import time; open({str(tmp_path / 'begun')!r}, 'w').close(); time.sleep(60); open({str(tmp_path / 'late')!r}, 'w')"
    )
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {worker!r}], stdout=sys.stdout).wait()"
    server = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    while not (tmp_path / "begun").exists():
        assert server.poll() is None
    addresses.end_group(server)
    assert server.stdout.read() == b""  # which ends when nobody holds it any more


def test_a_tracking_servers_page_is_opened(monkeypatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "https://example.org")
    monkeypatch.setattr(webbrowser, "open", opened.append)
    addresses.serve_page("127.0.0.1", "5005", "7", lambda line: None)
    assert opened == ["https://example.org/#/experiments/7/runs?workflowType=machine_learning"]
