"""Walk through the studio in headless Chromium as an artist would, and take the pictures of docs/how-to/studio.md.

Usage: kedro studio --no-browser, in a project with a registered pair, then python -m tools.studio_walk FOLDER
"""

import base64
import contextlib
import io
import itertools
import json
import logging
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import click
from PIL import Image
from websockets.sync.client import connect

logger = logging.getLogger(__name__)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_OPTIONS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
]  # fmt: skip
_TOO_WIDE = """(() => {
  const wide = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= wide) return [];
  const found = [...document.querySelectorAll("main *")].filter((each) => each.getBoundingClientRect().right > wide + 1);
  return found.map((each) => `${each.tagName}.${each.className}`).slice(0, 5);
})()"""
_UNLABELLED = """(() => {
  const named = (each) => each.ariaLabel || each.getAttribute("aria-labelledby") || each.labels?.length
    || each.textContent.trim() || each.querySelector("img[alt]:not([alt=''])");
  const controls = document.querySelectorAll("button, input, select, textarea, [role=tab], dialog");
  return [...controls].filter((each) => each.offsetParent && !named(each)).map((each) => each.outerHTML.slice(0, 120));
})()"""
_IN_SIGHT = """[...document.images].filter((each) => each.offsetParent && each.getBoundingClientRect().top < innerHeight)
  .every((each) => each.complete)"""
_KEYS = {"ArrowRight": 39, "End": 35, "Escape": 27}
WIDE, NARROW = (1280, 900), (390, 844)


class Page:
    """A page in a browser of its own, by the DevTools protocol. errors: what scripts and requests failed with."""

    def __init__(self, address: str, size: tuple[int, int] = WIDE, dark: bool = False):
        if CHROMIUM is None:
            raise FileNotFoundError("There is no Chromium: apt-get install chromium")
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = [CHROMIUM, *_OPTIONS, f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr
        port = next(line for line in self._process.stderr if "DevTools listening" in line).split("127.0.0.1:")[1].split("/")[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            target = next(each for each in json.load(answer) if each["type"] == "page")
        self._open = contextlib.ExitStack()
        self._socket = self._open.enter_context(connect(target["webSocketDebuggerUrl"], max_size=None))
        self._ids, self.errors = itertools.count(1), list[str]()
        for domain in ("Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")
        self.view(size, dark)
        self.call("Page.navigate", url=address)
        self.wait("document.querySelector('[role=tab][aria-selected=true]') && document.getElementById('project').textContent")

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()
        self._process.terminate()
        self._process.wait()
        self._profile.cleanup()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            told = json.loads(self._socket.recv(timeout=120))
            if told.get("method") == "Runtime.exceptionThrown":
                self.errors.append(told["params"]["exceptionDetails"]["exception"].get("description", "?"))
            if told.get("method") == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
                self.errors.append(f"{told['params']['entry']['text']} {told['params']['entry'].get('url', '')}")
            if told.get("id") == number:
                return told["result"]

    def run(self, script: str) -> Any:
        """The value of a script, promises awaited. Raises RuntimeError with what it throws."""
        told = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        if "exceptionDetails" in told:
            raise RuntimeError(told["exceptionDetails"]["exception"].get("description", script))
        return told["result"].get("value")

    def wait(self, script: str, seconds: float = 120) -> None:
        """Until a script's value is true. Raises TimeoutError."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({script})"):
            if time.monotonic() > end:
                raise TimeoutError(f"{script}; the page shows {self.run('document.body.innerText')[-600:]}")
            time.sleep(0.2)

    def press(self, text: str, within: str = "main") -> None:
        """The first button there, not hidden, that says this."""
        buttons = f"[...document.querySelectorAll({within + ' button'!r})]"
        found = f"{buttons}.find((each) => each.textContent.trim() === {text!r} && each.offsetParent)"
        self.wait(found, 20)
        self.run(f"{found}.click()")

    def tab(self, name: str) -> None:
        self.run(f"document.getElementById('tab-{name}').click()")

    def choose(self, place: str, value: str) -> None:
        """An option of the select element that the selector finds, once it is there."""
        option = f"[...document.querySelector({place!r}).options].find((each) => each.value === {value!r})"
        self.wait(option, 30)
        chosen = f"const own = document.querySelector({place!r}); own.value = {value!r}"
        self.run(f"(() => {{ {chosen}; own.dispatchEvent(new Event('change')); }})()")

    def key(self, name: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=_KEYS[name])

    def view(self, size: tuple[int, int], dark: bool = False) -> None:
        width, height = size
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self) -> Image.Image:
        """What is seen."""
        told = self.call("Page.captureScreenshot", format="png")
        return Image.open(io.BytesIO(base64.b64decode(told["data"])))

    def settled(self) -> None:
        """Until every picture that is in sight is there."""
        self.wait(_IN_SIGHT, 120)
        time.sleep(0.5)

    def too_wide(self) -> list[str]:
        """Elements that make the page scroll sideways."""
        return self.run(_TOO_WIDE)

    def unlabelled(self) -> list[str]:
        """Controls in sight that a screen reader has no name for."""
        return self.run(_UNLABELLED)


def small(image: Image.Image, file: Path) -> None:
    """Save with few colours, as a page of text needs no more."""
    image.convert("RGB").quantize(256, kmeans=1).save(file, optimize=True)


def take(page: Page, folder: Path, content: str, style: str) -> None:
    """The four pictures, of a project with this pair registered and these folders of pictures."""
    page.tab("library")
    page.wait("document.querySelector('#library .card img')")
    page.settled()
    small(page.picture(), folder / "studio_library.png")
    page.tab("compose")
    for kind in (content, style):
        tile = f"[...document.querySelectorAll('#compose .tile')].find((t) => t.textContent === {kind!r})"
        page.wait(tile)
        page.run(f"{tile}.click()")
    page.wait("document.querySelector('#compose .chosen')")
    page.press("Strength grid")
    page.wait(
        "document.querySelectorAll('#compose .strengths .slot img').length === 9 && document.querySelector('#compose .chosen')"
    )
    page.settled()
    small(page.picture(), folder / "studio_compose.png")
    page.tab("train")
    page.choose("#train .concept.content select", "data/01_raw/contents/penguin")
    page.choose("#train .concept.style select", "data/01_raw/styles/wood")
    page.wait("document.querySelector('#train details table')")
    page.settled()
    page.view((WIDE[0], 1250))
    page.settled()
    small(page.picture(), folder / "studio_train.png")
    page.tab("sheets")
    page.wait("document.querySelector('#sheets .figures img')")
    page.settled()
    small(page.picture(), folder / "studio_sheets.png")


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--address", default="http://127.0.0.1:7860", show_default=True)
@click.option("--content", default="penguin", show_default=True)
@click.option("--style", default="knit", show_default=True)
def main(folder: Path, address: str, content: str, style: str) -> None:
    """Take the pictures of the studio at ADDRESS into FOLDER."""
    folder.mkdir(parents=True, exist_ok=True)
    with Page(address) as page:
        take(page, folder, content, style)
        for error in page.errors:
            logger.error(error)


if __name__ == "__main__":
    main()
