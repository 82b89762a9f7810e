"""Kedro-Viz in a real browser: slow, and skipped where there is no Chromium (Debian's package `chromium` will do)."""

import functools
import http.server
import json
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from tests.test_readme import default_run, environment, project, sh  # noqa: F401 (fixtures)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]


@pytest.fixture(scope="module")
def site(project, default_run):  # noqa: F811
    """Address of what `kedro viz build --include-previews` made, after a whole run."""
    done = sh(project, "kedro viz build --include-previews --include-hooks")
    assert done.returncode == 0, done.stderr[-3000:]

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=project / "build")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def browse(url: str, tmp_path, *options: str) -> str:
    command = [CHROMIUM, "--headless", "--no-sandbox", "--no-first-run", *QUIET, f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1600,1000", "--virtual-time-budget=20000", *options, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_browser_shows_every_stage(site, tmp_path) -> None:
    page = browse(site, tmp_path, "--dump-dom")
    assert page.count("pipeline-node") > 20, page[:2000]
    for shown in ("check_pictures", "content_break", "style_break", "made_adapter", "contact_sheet"):
        assert f">{shown}<" in page, f"{shown} is not drawn"


def test_sheets_come_along_as_previews(site, project) -> None:  # noqa: F811
    shown = {}
    for file in (project / "build/api/nodes").iterdir():
        about = json.loads(file.read_text())
        if about.get("preview_type") and about["preview"]:  # of what this run wrote
            shown[Path(about["filepath"]).stem] = about["preview_type"]
    for name in ("input_sheet", "contact_sheet"):
        assert shown[name] == "ImagePreview"
    assert shown["manifest"] == shown["training_set"] == "TablePreview" and shown["make_loss_curve"] == "PlotlyPreview"
    assert shown["pictures"] == "ImagePreview" and shown["made"] == "JSONPreview"
