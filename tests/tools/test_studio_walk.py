"""The studio in a real browser: slow, and skipped where there is no Chromium (Debian's package `chromium` will do)."""

import threading
import time
from pathlib import Path

import pytest
from tools.studio_walk import CHROMIUM, NARROW, WIDE, Page

from b4m_pipeline.one_line import explain
from b4m_pipeline.studio.app import Studio, build
from b4m_pipeline.studio.serve import bind
from tests.studio.conftest import CONTENT, parameters, places, project, registered, registry  # noqa: F401 (fixtures)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]


@pytest.fixture
def served(places, parameters, registry, project):  # noqa: F811
    """Address and Studio of a server in a thread."""
    import uvicorn

    (project / "data/01_raw/own/cup/<img src=x onerror=alert(1)>.txt").write_text("x")
    (project / "data/01_raw/own/cup/0.png").rename(project / "data/01_raw/own/cup/<img src=x onerror=alert(1)>.png")
    studio = Studio.of(places, parameters, None, lambda name: None, explain)
    listener = bind(0)
    server = uvicorn.Server(uvicorn.Config(build(studio), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}", studio
    server.should_exit = True
    thread.join()


def test_an_artist_walks_from_the_library_to_a_file(served, tmp_path: Path) -> None:
    address, studio = served
    with Page(address) as page:
        page.wait("document.querySelectorAll('#library .card').length === 3")
        page.press("Compose", "#library .card.content")
        page.wait("document.activeElement.id === 'tab-compose'")  # the keyboard is where the page is
        page.wait("!document.querySelector('#compose button.main').disabled")
        page.run("document.querySelector('#compose input[max=\"100\"]').value = 2")
        page.press("Draw", "#compose")
        page.wait("document.querySelector('#compose .chosen img')?.naturalWidth === 32")
        page.press("Keep", "#compose .chosen")
        page.wait("document.querySelectorAll('.kept img').length === 1")
        page.press("Register", "#compose .chosen")
        page.press("Promote", "#compose .chosen")
        page.wait("document.getElementById('messages').textContent.includes('champion: version 1')")
        page.press("Command and Python", "#compose .chosen")
        page.wait("document.querySelector('dialog pre')?.textContent.includes('--pipelines=compose')")
        assert page.unlabelled() == []
        page.key("Escape")
        page.wait("!document.querySelector('dialog')")
        page.press("Export…", "#compose .chosen")
        page.press("Write the file", "dialog")
        page.wait("document.querySelector('dialog [role=status]')?.textContent.includes('safetensors')")
        assert page.errors == []
    assert len(list((studio.places.output / "exports").glob("*.safetensors"))) == 1


def test_names_with_markup_are_text_and_captions_are_saved(served) -> None:
    address, studio = served
    with Page(f"{address}/#train") as page:
        page.choose("#train .concept.content select", "data/01_raw/own/cup")
        page.choose("#train .concept.style select", "data/01_raw/own/ink")
        page.wait("document.querySelectorAll('#train .pictures li').length === 4")
        assert "<img src=x onerror=alert(1)>.png" in page.run("document.querySelector('#train .pictures').textContent")
        assert page.run("document.querySelectorAll('[onerror]').length") == 0
        page.run(
            "(() => { const own = document.querySelector('#train .pictures textarea'); own.value = 'a snq toy <b>bold</b>';"
            " own.dispatchEvent(new Event('change')); })()"
        )
        page.wait("document.getElementById('messages').textContent.includes('saved')")
        assert page.run("document.querySelector('#train .pictures textarea').value") == "a snq toy <b>bold</b>"
        assert page.errors == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_every_tab_fits_and_is_labelled(served, size, dark) -> None:
    with Page(served[0], size, dark) as page:
        for name in ("library", "compose", "train", "sheets"):
            page.tab(name)
            page.settled()
            assert page.too_wide() == [] and page.unlabelled() == [], name
        page.run("document.getElementById('tab-library').focus()")
        page.key("ArrowRight")
        page.wait("document.activeElement.id === 'tab-compose' && !document.getElementById('compose').hidden")
        page.key("End")
        page.wait("!document.getElementById('sheets').hidden")
        assert page.errors == []


def test_the_page_says_that_the_server_is_gone(served) -> None:
    with Page(served[0]) as page:
        page.wait("document.querySelectorAll('#library .card').length === 3")
        page.call("Network.enable")
        gone = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        page.call("Network.emulateNetworkConditions", **gone)
        page.press("Reload", "#library")
        page.wait("!document.getElementById('trouble').hidden")
        page.call("Network.emulateNetworkConditions", **gone | {"offline": False})
        page.press("Reload", "#library")
        page.wait("document.getElementById('trouble').hidden")
