"""The server's answers, without a browser."""

import io
import re
import time

import pytest
from PIL import Image

from b4m_pipeline.one_line import explain
from b4m_pipeline.studio.app import STATIC, Studio, build
from b4m_pipeline.studio.security import HEADER
from tests.studio.conftest import CONTENT, MADE, STYLE, asked

SCRIPTS = {file.name: file.read_text(encoding="utf-8") for file in STATIC.glob("*.js")}


@pytest.fixture
def studio(places, parameters, registry) -> Studio:
    def load(name: str) -> None:
        raise FileNotFoundError(name)

    return Studio.of(places, parameters, None, load, explain)


@pytest.fixture
def client(studio):
    from starlette.testclient import TestClient

    return TestClient(build(studio), base_url="http://127.0.0.1:7860", headers={HEADER: "1"}, raise_server_exceptions=False)


def ended(client, id: str) -> dict:
    for _ in range(600):
        told = client.get(f"/api/drawings/{id}").json()
        if told["state"] in ("done", "failed", "stopped"):
            return told
        time.sleep(0.05)
    raise AssertionError(told)


def test_the_page_and_all_that_it_loads_is_there_and_nothing_from_elsewhere(client) -> None:
    page = client.get("/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
    files = set(re.findall(r'(?:src|href)="(/static/[^"]+)"', page.text))
    for script in SCRIPTS.values():
        files |= {f"/static/{name}" for name in re.findall(r'from "\./([^"]+)"', script)}
    assert len(files) >= 9 and all(client.get(file).status_code == 200 for file in files)
    for text in (page.text, *SCRIPTS.values(), (STATIC / "studio.css").read_text(encoding="utf-8")):
        assert not re.search(r"https?://(?!www\.w3\.org/)", text)
    assert client.get("/static/../app.py").status_code == 404 and client.get("/docs").status_code == 404


def test_no_script_makes_elements_of_text() -> None:
    for name, script in SCRIPTS.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|DOMParser", script), name


def test_every_address_that_the_page_asks_for_is_answered(studio) -> None:
    routes = {re.sub(r"\{[^}]+\}", "X", route.path) for route in build(studio).routes}
    used = set()
    for script in SCRIPTS.values():
        used |= set(re.findall(r'[`"](/api/[^`"?]+)', script))
    plain = {re.sub(r"\$\{[^}]*\}(?:\)\.join\(\"/\"\))?", "X", path).removesuffix("}") for path in used}
    assert len(plain) > 20 and all(path in routes or "/api/sheets/X/" in path for path in plain), plain - routes


def test_settings_and_memory(client, parameters) -> None:
    told = client.get("/api/settings").json()
    assert told["resolution"] == 32 and told["steps"] == 2 and told["content"] == {"token": "snq", "noun": "toy"}
    assert told["mlflow"] is None  # a store's path, or its password, is not for the page
    rows = client.get("/api/memory").json()["rows"]
    assert {"content_break", "make", "draw (generate)"} <= {row["stage"] for row in rows} and all(row["fits"] for row in rows)


def test_from_the_library_to_a_kept_and_promoted_picture(client, studio) -> None:
    cards = {card["uri"]: card for card in client.get("/api/cards").json()["cards"]}
    assert set(cards) == {CONTENT, STYLE, MADE}
    assert Image.open(io.BytesIO(client.get("/api/cards/b4m-make-cup-ink/1.png").content)).size == (32, 32)
    assert client.get("/api/cards/b4m-style-ink/1.png").status_code == 204
    drawing = client.post("/api/drawings", json=asked(ways=["halves", "make"], adapter=MADE).model_dump()).json()
    told = ended(client, drawing["id"])
    assert told["state"] == "done" and [picture["way"] for picture in told["pictures"]] == ["halves", "make"]
    halves = told["pictures"][0]["id"]
    assert Image.open(io.BytesIO(client.get(f"/api/pictures/{halves}.png").content)).info["b4m"]
    recipe = client.get(f"/api/pictures/{halves}/recipe").json()
    assert len(recipe["commands"]) == 2 and "join_halves" in recipe["python"]
    kept = client.post(f"/api/pictures/{halves}/keep").json()["file"]
    assert [each["file"] for each in client.get("/api/kept").json()] == [kept]
    assert client.get(f"/api/kept/{kept}").headers["content-type"] == "image/png"
    record = client.post(f"/api/pictures/{halves}/register").json()
    promoted = client.post("/api/promotions", json={"name": record["name"], "version": record["version"]})
    assert promoted.json()["message"] == "b4m-joined-cup-ink@champion: version 1 (before: none)"
    assert (
        "nothing to roll back to"
        in client.post("/api/roll-backs", json={"name": record["name"], "version": "1"}).json()["error"]
    )
    assert client.delete(f"/api/kept/{kept}").status_code == 200 and client.get("/api/kept").json() == []


def test_a_card_is_drawn_on_request(client) -> None:
    request = {"adapter": STYLE, "ways": ["alone"], "prompt": "a toy", "steps": 1, "guidance_scale": 1, "card": True}
    told = ended(client, client.post("/api/drawings", json=request).json()["id"])
    assert told["state"] == "done", told
    assert client.get("/api/cards/b4m-style-ink/1.png").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("post", "/api/drawings", {"ways": ["halves"]}, 422, "prompt: Field required"),
        ("post", "/api/drawings", "no object", 422, "Input should be"),
        ("get", "/api/drawings/none", None, 400, "not kept any more"),
        ("get", "/api/pictures/none.png", None, 400, "not kept any more"),
        ("get", "/api/cards/b4m-none/1.png", None, 400, "no version 1 of b4m-none"),
        ("get", "/api/differences?first=/etc/passwd&second=x", None, 400, "no version of the registry"),
        ("post", "/api/promotions", {"name": "b4m-none", "version": "1"}, 400, "The registry has no b4m-none"),
        ("post", "/api/inspections", {"content": {"path": "/etc"}, "style": {"path": "x"}}, 400, "--allow"),
        ("put", "/api/captions", {"folder": "data/01_raw/own/cup", "file": "../x.png", "text": "y"}, 400, "no picture"),
        ("post", "/api/runs/current/stop", {}, 400, "No run is under way"),
        ("post", "/api/runs/current/go-on", {}, 400, "no run to go on with"),
        ("get", "/api/sheets/none", None, 400, "no run"),
        ("post", "/api/merges", {"name": "b4m-make-cup-ink", "version": "1"}, 400, "run ingestion"),
        ("get", "/api/exports/none.safetensors", None, 400, "No exported file"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(client, method, path, body, status, said) -> None:
    answer = client.request(method, path, json=body) if body is not None else client.request(method, path)
    assert answer.status_code == status and said in answer.json()["error"] and "\n" not in answer.json()["error"]


def test_pictures_are_uploaded_looked_at_and_captioned(client, project) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((40, 40), 60).save(buffer, format="PNG")
    taken = client.put("/api/uploads/mug/a%20%3Cb%3E.png", content=buffer.getvalue())
    assert taken.json() == {"folder": "data/01_raw/own/mug", "file": "a <b>.png"}
    refused = client.put("/api/uploads/mug/b.png", content=b"<svg onload=alert(1)>")
    assert refused.status_code == 400 and "b.png is left out: no picture" in refused.json()["error"]
    assert "data/01_raw/own/mug" in {folder["path"] for folder in client.get("/api/folders").json()}
    pair = {"content": {"path": "data/01_raw/own/mug"}, "style": {"path": "data/01_raw/own/ink"}}
    found = client.post("/api/inspections", json=pair).json()
    assert [row["file"] for row in found["rows"]] == ["a <b>.png", "0.png", "1.png"]
    assert Image.open(io.BytesIO(client.get(f"/api/inspections/{found['id']}/0.png").content)).size == (32, 32)
    caption = {"folder": "data/01_raw/own/mug", "file": "a <b>.png", "text": "a snq mug"}
    assert client.put("/api/captions", json=caption).status_code == 200
    assert client.post("/api/inspections", json=pair).json()["rows"][0]["caption"] == "a snq mug"


def test_an_upload_is_cut_off_before_it_fills_the_memory(client, monkeypatch) -> None:
    monkeypatch.setattr("b4m_pipeline.studio.app.MOST_BYTES", 1000)
    answer = client.put("/api/uploads/mug/a.png", content=b"x" * 5000)
    assert answer.status_code == 400 and "the most that is taken" in answer.json()["error"]


def test_other_sites_are_refused(client) -> None:
    assert client.get("/api/cards", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/api/cards", headers={"origin": "http://evil.example"}).status_code == 403
    del client.headers[HEADER]
    assert client.post("/api/runs/current/stop").status_code == 403


def test_a_store_that_went_away_is_said_and_a_defect_has_no_traceback_on_the_page(client, monkeypatch) -> None:
    from mlflow.exceptions import MlflowException

    def away(**_):
        raise MlflowException("API request failed: connection refused\nmore")

    monkeypatch.setattr("b4m_pipeline.studio.shelf.page_of_adapters", away)
    answer = client.get("/api/cards")
    assert answer.status_code == 503 and answer.json()["error"].startswith("MLflow does not answer")
    monkeypatch.setattr("b4m_pipeline.studio.shelf.page_of_adapters", lambda **_: 1 / 0)
    answer = client.get("/api/cards")
    assert answer.status_code == 500 and "ZeroDivisionError" in answer.json()["error"]
    assert client.get("/api/settings").status_code == 200
