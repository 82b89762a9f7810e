"""Adapters as a service: what a request asks for is what is drawn, what cannot be drawn is refused in a line."""

import base64
import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from PIL import Image

from b4m_pipeline.diffusion.params import GenerateParams
from b4m_pipeline.diffusion.sampling import INFO_KEY, GenerationError, generate
from b4m_pipeline.method.adapter import WEIGHTS_NAME, Adapter, AdapterError
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.method.frame import FrameMismatchError
from b4m_pipeline.registry import serving
from b4m_pipeline.registry.adapters import RegistrationError, register_adapter
from b4m_pipeline.registry.turns import TimeUpError
from tests import warm
from tests.conftest import PIXELS, framed_lora_of
from tests.registry.helpers import INFERENCE, log_adapter
from tests.test_conf import load
from tests.test_startup import ROOT

URI = "models:/b4m-make-cup-ink@candidate"
PROMPT = "a snq toy in w@z style"


@pytest.fixture(scope="module")
def adapter(tiny_sdxl):
    return framed_lora_of(tiny_sdxl)


@pytest.fixture(scope="module")
def logged(adapter, tiny_sdxl, tmp_path_factory) -> Path:
    """The model's files as they are logged."""
    return log_adapter(adapter, tiny_sdxl, tmp_path_factory.mktemp("logged"))


def test_the_pinned_revision_is_kept_with_the_model(adapter, tiny_sdxl, tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow.diffusers, "_resolve_base_model_revision", lambda base: "newest")
    for revision, kept in (("pinned", "pinned"), (None, "newest")):
        about = adapter.metadata | ({"base_revision": revision} if revision else {})
        own = Adapter(adapter.tensors, about, adapter.lora_config)
        folder = tmp_path / kept
        weights = save_adapter(own, folder / "made")
        signature = serving.predict_signature(about, INFERENCE)
        base = {"base_model": str(tiny_sdxl), "signature": signature, "pip_requirements": []}
        serving.save_model(str(folder / "model"), adapter_path=str(weights), **base)
        assert Model.load(str(folder / "model")).flavors["diffusers"]["base_model_revision"] == kept


@pytest.fixture(scope="module")
def served(logged):
    return mlflow.pyfunc.load_model(str(logged))


@pytest.fixture
def folder(logged, tmp_path) -> Path:
    """The model's files, to be spoilt."""
    return Path(shutil.copytree(logged, tmp_path / "model"))


def ask(served, *prompts: str, **params) -> list[bytes]:
    return served.predict({"prompt": list(prompts or [PROMPT])}, params=params)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)), int)


def expected(adapter, base, seed=0, **changes) -> list[np.ndarray]:
    params = GenerateParams(
        **{"adapter": "x", "prompts": [PROMPT], "images_per_prompt": 1, "steps": 2, "guidance_scale": 2.0} | changes
    )
    return [np.asarray(picture, int) for picture in generate(adapter, base, params, seed).values()]


def test_the_signature_names_every_setting_with_its_default(served):
    schema = served.metadata.signature.params
    defaults = {spec.name: spec.default for spec in schema.params}
    assert defaults == INFERENCE | {
        "height": PIXELS, "width": PIXELS, "negative_prompt": "", "seed": 0, "content_scale": 1.0, "style_scale": 1.0,
        "adapter": "",
    }  # fmt: skip


def test_predict_draws_what_generate_draws_with_the_same_settings(served, adapter, tiny_base):
    (png,) = ask(served, seed=5)
    assert np.abs(pixels(png) - expected(adapter, tiny_base, 5)[0]).max() <= 1
    told = json.loads(Image.open(io.BytesIO(png)).info[INFO_KEY])
    assert told["seed"] == 5 and told["prompt"] == PROMPT and told["adapter"] == "cup-ink"
    (other,) = ask(served, seed=5, negative_prompt="blur")
    wanted = expected(adapter, tiny_base, 5, negative_prompt="blur")[0]
    assert np.abs(pixels(other) - wanted).max() <= 1 and np.abs(pixels(other) - pixels(png)).max() > 1


def test_several_prompts_are_a_batch_with_seeds_in_a_row(served):
    both = ask(served, PROMPT, "a toy", seed=3)
    alone = ask(served, "a toy", seed=4) + served.predict(pd.DataFrame({"prompt": ["a toy", PROMPT]}), params={"seed": 4})
    assert len(both) == 2 and len(alone) == 3
    assert np.abs(pixels(both[1]) - pixels(alone[0])).max() <= 1
    assert np.abs(pixels(both[1]) - pixels(alone[1])).max() <= 1


def test_scales_differ_from_request_to_request_and_leave_nothing_behind(served, adapter, tiny_base):
    (plain,) = ask(served)
    for scales in ({"content_scale": 0.5, "style_scale": 2.0}, {"content_scale": 0.0}, {"style_scale": 0.0}):
        (png,) = ask(served, **scales)
        assert np.abs(pixels(png) - expected(adapter, tiny_base, **scales)[0]).max() <= 1
        assert np.abs(pixels(png) - pixels(plain)).max() > 1
    assert ask(served)[0] == plain
    (neither,) = ask(served, content_scale=0.0, style_scale=0.0)
    base = GenerateParams(adapter=None, prompts=[PROMPT], images_per_prompt=1, steps=2, guidance_scale=2.0)
    (bare,) = generate(None, tiny_base, base, 0).values()
    assert np.abs(pixels(neither) - np.asarray(bare, int)).max() <= 1


def test_requests_may_name_other_adapters_where_the_server_allows_it(
    served, adapter, tiny_base, tracking, tmp_path, monkeypatch
):
    other = Adapter(
        {k: 0.5 * t for k, t in adapter.tensors.items()}, adapter.metadata | {"name": "cup-oil"}, adapter.lora_config
    )
    save_adapter(other, tmp_path / "other")
    uri = register_adapter(tmp_path / "other")["uri"]
    with pytest.raises(MlflowException, match="draws with cup-ink alone"):
        ask(served, adapter=uri)
    monkeypatch.setenv(serving.OTHERS, "1")
    (plain,), (png,) = ask(served), ask(served, adapter="models:/b4m-make-cup-oil@candidate", content_scale=0.5)
    assert np.abs(pixels(png) - expected(other, tiny_base, content_scale=0.5)[0]).max() <= 1
    assert json.loads(Image.open(io.BytesIO(png)).info[INFO_KEY])["adapter"] == uri
    assert ask(served)[0] == plain != png and ask(served, adapter=uri, content_scale=0.5)[0] == png


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("models:/b4m-make-nobody@candidate", "cannot be fetched from the registry"),
        ("/etc/passwd", "names no version"),
        ("models:/b4m-make-a-b/1", "is an adapter of the base model elsewhere@1"),
        ("x" * 301, "at most 300 characters"),
    ],
)
def test_other_adapters_that_cannot_be_drawn_with_are_refused_in_a_line(served, adapter, source, said, tracking, monkeypatch):
    monkeypatch.setenv(serving.OTHERS, "1")
    if source.endswith("/1"):
        about = adapter.metadata | {"frame_config": '{"base_model": "elsewhere@1"}'}
        monkeypatch.setattr(serving, "fetch_adapter", lambda uri: Adapter(adapter.tensors, about, adapter.lora_config))
        monkeypatch.setattr(serving, "_version_of", lambda uri: uri)
    with pytest.raises(MlflowException, match=said) as error:
        ask(served, adapter=source)
    assert error.value.get_http_status_code() == 400 and "\n" not in str(error.value)


def test_requests_of_many_threads_do_not_mix(served):
    wanted = [{"seed": seed, "content_scale": scale} for seed in (0, 1) for scale in (0.0, 1.0, 2.0)]
    alone = [ask(served, **params)[0] for params in wanted]
    with ThreadPoolExecutor(len(wanted)) as pool:
        together = list(pool.map(lambda params: ask(served, **params)[0], wanted * 2))
    assert together == alone * 2 and len(set(alone)) == len(wanted)


@pytest.fixture
def in_server(monkeypatch):
    """As MLflow's server marks its process; seconds -> that is what a request may take."""
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    return lambda seconds: monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", str(seconds))


def test_whoever_waits_too_long_is_told_so_and_not_drawn_for(served, in_server, monkeypatch):
    in_server(0)
    line = served._model_impl.line
    monkeypatch.setattr(line, "_seconds", 0.0)  # otherwise it would not be let in
    with line.place(60, 9) as place, line.turn(place), pytest.raises(MlflowException, match="0 of 1 pictures") as error:
        ask(served)
    assert error.value.get_http_status_code() == 503 and error.value.retry_after >= 1
    in_server(60)
    assert len(ask(served)) == 1


def test_drawing_stops_between_steps_when_the_time_is_up(served, in_server, monkeypatch):
    in_server(60)
    steps = []

    def up_after_three(place):
        steps.append(place)
        if len(steps) > 3:
            raise TimeUpError("the time is up")

    with monkeypatch.context() as patch:
        patch.setattr("b4m_pipeline.registry.turns.Place.require_time", up_after_three)
        with pytest.raises(MlflowException, match="0 of 1 pictures were drawn in the 57 s .* stopped") as error:
            ask(served, num_inference_steps=90)
    assert error.value.get_http_status_code() == 503 and len(steps) == 4
    assert ask(served) == ask(served)  # nothing is left of the drawing that was stopped


def test_a_full_line_refuses_at_once_in_a_server_alone(served, in_server):
    in_server(60)
    line = served._model_impl.line
    line._seconds = 1.0
    with contextlib.ExitStack() as places:
        for _ in range(serving.MAX_WAITING + 1):
            places.enter_context(line.place(60, 9))
        with pytest.raises(MlflowException, match=r"4 requests are waiting .* try again in \d+ s") as error:
            ask(served)
    assert error.value.get_http_status_code() == 429


def test_a_large_request_lets_small_ones_go_between(served):
    ended = []

    def draw(*prompts):
        pictures = ask(served, *prompts)
        ended.append(len(prompts))
        return pictures

    with ThreadPoolExecutor(2) as pool:
        large = pool.submit(draw, *["a toy"] * 32)
        while not served._model_impl.line._places:
            time.sleep(0.001)
        small = pool.submit(draw, PROMPT)
    assert ended == [1, 32] and len(large.result()) == 32
    assert small.result() == ask(served)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps: .*greater than or equal to 1, got 0"),
        ({"num_inference_steps": 10**6}, "num_inference_steps: .*less than or equal to 100"),
        ({"height": PIXELS + 1}, "height: .*multiple of 8, got 33"),
        ({"width": 8192}, f"width must be at most {4 * PIXELS}, 4 times what"),
        ({"content_scale": -0.5}, "content_scale: .*greater than or equal to 0"),
        ({"style_scale": 5.0}, "style_scale: .*less than or equal to 4"),
        ({"guidance_scale": float("nan")}, "guidance_scale: .*finite"),
        ({"seed": -1}, "seed: .*greater than or equal to 0"),
        ({"negative_prompt": "x" * 2000}, "negative_prompt: .*at most 1000 characters"),
        ({"num_inference_steps": "many"}, "num_inference_steps"),
        ({"num_inference_steps": 100, "height": 4 * PIXELS, "width": 4 * PIXELS}, "1 prompts of 128 x 128 .* too much"),
    ],
)
def test_params_out_of_bounds_are_a_bad_request(served, params, message):
    with pytest.raises(MlflowException, match=message) as error:
        ask(served, **params)
    assert error.value.get_http_status_code() == 400


@pytest.mark.parametrize(
    ("prompts", "message"),
    [([" "], "prompt 0 is empty"), ([PROMPT] * 33, "1 to 32 prompts, got 33"), (["x" * 1001], "1001 characters")],
)
def test_prompts_that_cannot_be_drawn_are_a_bad_request(served, prompts, message):
    with pytest.raises(MlflowException, match=message) as error:
        ask(served, *prompts)
    assert error.value.get_http_status_code() == 400


def test_a_defect_is_the_servers_fault_and_says_no_more_than_that(served, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise RuntimeError("shapes of something secret")

    with monkeypatch.context() as patch:
        patch.setattr("b4m_pipeline.registry.serving.draw", fail)
        with pytest.raises(MlflowException, match="RuntimeError") as error:
            ask(served)
    assert error.value.get_http_status_code() == 500 and "secret" not in error.value.message
    assert "secret" in caplog.text
    assert len(ask(served)) == 1  # the lock was given back


def test_a_full_gpu_asks_for_less(served, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("b4m_pipeline.registry.serving.draw", fail)
    with pytest.raises(MlflowException, match="fewer prompts") as error:
        ask(served)
    assert error.value.get_http_status_code() == 429


@pytest.mark.parametrize(("kind", "side"), [("content", "lora_A"), ("style", "lora_B")])
def test_a_half_is_served_with_its_own_scale_alone(joined_adapter, tracking, tiny_base, tmp_path, kind, side):
    joined_adapter.metadata |= {"kind": kind, "half": side, "name": kind, "token": "snq"}
    joined_adapter.metadata["params"] = '{"frame": {"halves": "free"}}'
    save_adapter(joined_adapter, tmp_path / kind)
    uri = register_adapter(tmp_path / kind, inference=INFERENCE)["uri"]
    half = mlflow.pyfunc.load_model(uri)
    names = {spec.name for spec in half.metadata.signature.params.params}
    assert {name for name in names if name.endswith("_scale")} == {"guidance_scale", f"{kind}_scale"}
    (png,) = ask(half, **{f"{kind}_scale": 0.5})
    assert np.abs(pixels(png) - expected(joined_adapter, tiny_base, **{f"{kind}_scale": 0.5})[0]).max() <= 1


def test_diffusers_flavor_is_as_before(logged):
    loaded = mlflow.diffusers.load_model(str(logged))
    assert type(loaded).__name__ == "DiffusersAdapterModel"
    assert loaded.load_pipeline(device="cpu").unet.peft_config
    flavors = yaml.safe_load((logged / "MLmodel").read_text())["flavors"]
    assert flavors["python_function"]["loader_module"] == "b4m_pipeline.serving"


def test_a_base_model_that_moved_is_said_and_can_be_named(folder, tiny_sdxl, tmp_path):
    described = yaml.safe_load((folder / "MLmodel").read_text())
    for flavor in (described["flavors"]["diffusers"], described["flavors"]["python_function"]["config"]):
        flavor["base_model"] = str(tmp_path / "gone")
    (folder / "MLmodel").write_text(yaml.safe_dump(described))
    with pytest.raises(serving.ServingError, match="gone and is not there any more"):
        mlflow.pyfunc.load_model(str(folder))
    renamed = tmp_path / "renamed"
    renamed.symlink_to(tiny_sdxl)
    again = mlflow.pyfunc.load_model(str(folder), model_config={"base_model": str(renamed)})
    assert len(ask(again)) == 1


def test_another_base_model_in_its_place_is_refused(folder, tiny_sdxl, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_sdxl, other)
    file = other / "unet/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\1\2\3\4")
    with pytest.raises(GenerationError, match="is an adapter of the base model"):
        mlflow.pyfunc.load_model(str(folder), model_config={"base_model": str(other)})


@pytest.mark.parametrize("spoil", ["cut", "flip"])
def test_a_damaged_file_is_refused(folder, spoil):
    (file,) = folder.rglob(WEIGHTS_NAME)
    data = bytearray(file.read_bytes())
    data[-3] ^= 0x40
    file.write_bytes(data[:-100] if spoil == "cut" else data)
    with pytest.raises(AdapterError, match="damaged"):
        mlflow.pyfunc.load_model(str(folder))


def test_frames_that_do_not_have_their_fingerprint_are_refused(joined_adapter, tiny_sdxl):
    wrong = dataclasses.replace(joined_adapter, metadata=joined_adapter.metadata | {"frame": "0" * 16})
    with pytest.raises(FrameMismatchError):
        serving.ServedAdapter(wrong, str(tiny_sdxl), "cpu")
    none = dataclasses.replace(joined_adapter, metadata=joined_adapter.metadata | {"frame_config": "{}"})
    with pytest.raises(FrameMismatchError, match="cup-ink has no frame"):
        serving.ServedAdapter(none, str(tiny_sdxl), "cpu")
    other = dataclasses.replace(joined_adapter, metadata=joined_adapter.metadata | {"frame_config": '{"layers": {}}'})
    with pytest.raises(serving.ServingError, match="does not say what its frame is"):
        serving.ServedAdapter(other, str(tiny_sdxl), "cpu")


def test_defaults_are_those_of_the_default_configuration():
    drawn = load("base")["generate"]
    own = serving.PredictParams()
    assert (own.num_inference_steps, own.guidance_scale) == (drawn["steps"], drawn["guidance_scale"])
    assert (own.content_scale, own.style_scale) == (drawn["content_scale"], drawn["style_scale"])


@pytest.mark.parametrize(("inference", "message"), [({"sed": 1}, "sed"), ({"num_inference_steps": 0}, "num_inference_steps")])
def test_wrong_defaults_are_refused_before_anything_is_registered(joined_adapter, tracking, tmp_path, inference, message):
    save_adapter(joined_adapter, tmp_path / "made")
    with pytest.raises(RegistrationError, match=message):
        register_adapter(tmp_path / "made", inference=inference)
    assert tracking.search_registered_models() == []


def post(url: str, body: dict) -> tuple[int, dict]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@contextlib.contextmanager
def answering(port: int, log: Path, alive: Callable[[], bool]) -> Iterator[str]:
    """The address of a server as soon as it answers."""
    deadline = time.monotonic() + 180
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5) as answer:
            assert answer.status == 200
            break
        assert alive() and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.3)
    yield f"http://127.0.0.1:{port}/invocations"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_server(url: str) -> None:
    """Pictures as asked for, equal ones for equal requests, and bounds."""
    asked = {"inputs": {"prompt": [PROMPT, "a toy"]}, "params": {"seed": 7, "style_scale": 0.5}}
    status, first = post(url, asked)
    assert status == 200, first
    pictures = [Image.open(io.BytesIO(base64.b64decode(text))) for text in first["predictions"]]
    assert json.loads(pictures[0].info[INFO_KEY])["adapter"].startswith("models:/m-")
    assert [(picture.format, picture.size) for picture in pictures] == [("PNG", (PIXELS, PIXELS))] * 2
    assert post(url, asked)[1] == first
    assert post(url, asked | {"params": {"seed": 8, "style_scale": 0.5}})[1] != first
    for refused in ({"num_inference_steps": 0}, {"height": 30}, {"content_scale": -1.0}, {"width": 80000}):
        status, said = post(url, asked | {"params": refused})
        assert status == 400 and next(iter(refused)) in said["message"] and "Traceback" not in json.dumps(said)
        assert PROMPT not in said["message"]


def environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.slow
def test_mlflows_server_answers_with_pictures(adapter, tracking, tmp_path):
    save_adapter(adapter, tmp_path / "made")
    register_adapter(tmp_path / "made", inference=INFERENCE)
    port, log = free_port(), tmp_path / "server.log"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", URI, "--env-manager", "local", "-p", str(port)]
    with log.open("w") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment(), cwd=tmp_path, start_new_session=True
        )
    try:
        with answering(port, log, lambda: server.poll() is None) as url:
            check_server(url)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_our_server_answers_with_pictures(adapter, tracking, store, tmp_path):
    """`kedro serve` as docs/registry.md says, in a project of its own."""
    save_adapter(adapter, tmp_path / "made")
    register_adapter(tmp_path / "made", inference=INFERENCE)
    root = tmp_path / "project"
    shutil.copytree(ROOT / "conf/base", root / "conf/base")
    for folder in ("conf/local", "src"):
        (root / folder).mkdir()
    shutil.copy(ROOT / "pyproject.toml", root)
    port, log = free_port(), tmp_path / "server.log"
    page = (ROOT / "docs/registry.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^kedro serve .*--port \d+$", page, re.MULTILINE)
    command = line.replace("models:/b4m-make-penguin-knit@champion", URI).replace("5001", str(port)).split()
    given = environment() | {"MLFLOW_TRACKING_URI": store}
    server = warm.start(command, root, given, tmp_path / "output", log)
    try:
        with answering(port, log, server.is_alive) as url:
            check_server(url)
            assert post(url, {"inputs": [None]})[0] == 400 and post(url, {"inputs": ["x" * 600_000]})[0] == 413
        os.kill(server.pid, signal.SIGTERM)
        server.join(30)
        assert server.exitcode is not None
    finally:
        server.kill()
