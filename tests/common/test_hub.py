"""What a user is told of a model that cannot be had, with huggingface_hub's own errors: a small server plays the Hub."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from diffusers import AutoencoderKL

from b4m_pipeline.common.hub import CONFIG, WEIGHTS, HubError, reason, require_model
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.params import BaseModelParams
from b4m_pipeline.prerequisites import check_clip, check_hub

ANSWERS = {  # by the model's name: status and X-Error-Code, as the Hub gives them
    "none": (401, "RepoNotFound"),
    "gated": (403, "GatedRepo"),
    "revision": (404, "RevisionNotFound"),
    "entry": (404, "EntryNotFound"),
    "down": (503, None),
}


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        status, code = ANSWERS[self.path.split("/")[2]]
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Silent."""


@pytest.fixture
def online(monkeypatch, tmp_path):
    """Sets where the Hub is, and that it may be asked; the cache is empty."""

    def at(port: int) -> None:
        url = f"http://127.0.0.1:{port}"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    return at


@pytest.fixture
def hub(online):
    server = HTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    online(server.server_port)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def no_network(online):
    with socket.socket() as taken:  # nobody listens there
        taken.bind(("127.0.0.1", 0))
        online(taken.getsockname()[1])
        yield


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none", "there is no folder 'some/none' here, and the Hugging Face Hub shows no such model"),
        ("gated", "'some/gated' is gated on the Hugging Face Hub: accept its licence at http://.*/some/gated, then log in"),
        ("revision", "'some/revision' has no revision 'v9'"),
        ("entry", "'some/entry' on the Hugging Face Hub has no model_index.json"),
        ("down", "the Hugging Face Hub answers 503: try later.*hf download some/down --revision v9"),
    ],
)
def test_what_the_hub_answers_is_told_apart_and_asked_once(hub, name, said):
    with pytest.raises(HubError, match=f"^base_model.path: .*{said}"):
        load_family(BaseModelParams(path=f"some/{name}", revision="v9", resolution=32))
    assert hub.asked == [f"/some/{name}/resolve/v9/model_index.json"]


def test_without_a_network_every_parameter_says_so(no_network, tiny_base, caplog):
    said = r"'some/model' is not in this machine's cache .* cannot be reached: .*hf download some/model"
    with pytest.raises(HubError, match=f"base_model.path: {said} --local-dir FOLDER.*HF_HUB_OFFLINE=1"):
        load_family(BaseModelParams(path="some/model", resolution=32))
    with pytest.raises(HubError, match=f"base_model.vae: {said} --revision abc"):
        load_family(tiny_base.model_copy(update={"vae": "some/model@abc"})).check_parts()
    with pytest.raises(HubError, match=f"evaluation.clip: {said}"):
        check_clip("evaluation.clip", "some/model")
    with pytest.raises(HubError, match=f"captioning.vision_language_model: {said}"):
        check_hub("captioning.vision_language_model", "some/model")
    assert not caplog.records  # nothing is tried again


def test_offline_mode_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubError, match=r"evaluation.clip: 'some/clip' is not in .*, and HF_HUB_OFFLINE keeps it from"):
        check_clip("evaluation.clip", "some/clip")


def test_what_is_here_is_not_asked_for(no_network, tmp_path, monkeypatch):
    require_model("p", str(tmp_path), CONFIG)
    snapshot = tmp_path / "cache" / "models--some--clip" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    require_model("p", "some/clip", CONFIG, "0" * 40)
    with pytest.raises(HubError, match="cannot be reached"):  # the configuration was looked at earlier, the weights were not
        require_model("p", "some/clip", WEIGHTS, "0" * 40)
    (snapshot / WEIGHTS[1]).touch()
    require_model("p", "some/clip", WEIGHTS, "0" * 40)


def test_weights_of_another_name_are_left_to_the_library(hub):
    require_model("p", "some/entry", WEIGHTS)
    with pytest.raises(HubError, match="has no config.json"):
        require_model("p", "some/entry", CONFIG)


def test_what_can_be_no_id_is_a_path_that_is_not_there(no_network):
    with pytest.raises(HubError, match="base_model.path '/nowhere/at/all': there is no such file or folder, nor can it be"):
        require_model("base_model.path", "/nowhere/at/all", CONFIG)


def test_the_hub_is_found_behind_a_librarys_error(online, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="some/vae") as caught:
        AutoencoderKL.load_config("some/vae")
    assert "HF_HUB_OFFLINE" not in str(caught.value)
    assert "and HF_HUB_OFFLINE keeps it from being fetched" in str(reason(caught.value, "some/vae"))
    assert reason(OSError("disk full")) is None
