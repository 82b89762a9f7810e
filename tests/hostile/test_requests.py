"""Requests to a served adapter that are malformed or mean harm: a status, one short line, nothing drawn, and the next request
is answered as ever."""

import json

import pytest

from tests.registry.helpers import guarded_app, post

LONG = "SECRET-" * 30_000
"""200 KB that no answer may repeat."""


@pytest.fixture(scope="module")
def guard(tiny_sdxl, tmp_path_factory):
    with guarded_app(tiny_sdxl, tmp_path_factory.mktemp("served")) as app, pytest.MonkeyPatch.context() as patch:
        patch.setattr(app._served, "_draw", lambda requests, *_: [b"PNG"] * len(requests))  # these tests are not about drawing
        yield app
        assert post(app, prompts("a toy")).json == {"predictions": ["UE5H\n"]} and app._open == 0


def body(data, params=None, name="inputs") -> bytes:
    return json.dumps({name: data} | ({} if params is None else {"params": params})).encode()


def prompts(*texts, **params) -> bytes:
    return body({"prompt": list(texts)}, params or None)


def refused(said, status: int, phrase: str) -> None:
    """Check an answer: its status, and one short line that has the phrase and not what was asked."""
    message = said.json["message"]
    assert said.status == status and phrase in message
    assert len(message) < 400 and "\n" not in message and "Traceback" not in message and "SECRET-" * 12 not in message


NO_TEXT = [None, 5, 5.5, True, {"a": 1}, {"prompt": None}, [], ["a"], [["a"]], "", "  ", "\n\t", {"prompt": {"prompt": "a"}}]


@pytest.mark.parametrize("prompt", NO_TEXT, ids=repr)
@pytest.mark.parametrize("form", ["inputs", "inputs, rows", "instances", "dataframe_records", "dataframe_split"])
def test_a_prompt_that_is_no_text(guard, form, prompt):
    data = {
        "inputs": {"prompt": ["a toy", prompt]},
        "inputs, rows": ["a toy", prompt],
        "instances": [{"prompt": "a toy"}, {"prompt": prompt}],
        "dataframe_records": [{"prompt": prompt}],
        "dataframe_split": {"columns": ["prompt"], "data": [["a toy"], [prompt]]},
    }[form]
    refused(post(guard, body(data, name=form.split(",")[0])), 400, "is empty or no text")


@pytest.mark.parametrize(
    "prompt", [None, 5, True, {"a": 1}, {"a": "b"}, "", [None], ["a", 5], ["a", None], [{"a": "b"}]], ids=repr
)
def test_a_prompt_that_is_no_text_by_mlflows_own_server(guard, prompt):
    said = post(guard._app, body({"prompt": prompt}))
    assert (
        said.status == 400
        and "\n" not in said.json["message"]
        and "a prompt" in said.json["message"]
        or "no text" in said.json["message"]
    )


@pytest.mark.parametrize(
    ("asked", "phrase"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 200_000, "no JSON"),
        (b'{"inputs": ' * 40_000, "no JSON"),
        (b"9" * 10_000, "no JSON"),
        (b"null", "a request is"),
        (b"5", "a request is"),
        (b'"text"', "a request is"),
        (b'["a toy"]', "a request is"),
        (b"{}", "a request is"),
        (b'{"prompt": ["a toy"]}', "a request is"),
        (b'{"inputs": ["a"], "instances": ["a"]}', "a request is"),
        (b'{"inputs": ["a"], "model": "../../etc/passwd"}', "a request is"),
        (b'{"messages": [{"role": "user", "content": "hi"}]}', "a request is"),
        (b'{"inputs": null}', "empty or no text"),
        (b'{"inputs": 5}', "empty or no text"),
        (b'{"inputs": []}', "1 to 32 prompts, got 0"),
        (b'{"inputs": {}}', "empty or no text"),
        (b'{"inputs": {"other": ["a"]}}', "empty or no text"),
        (b'{"dataframe_split": 5}', "empty or no text"),
        (b'{"dataframe_split": {"columns": 5, "data": 5}}', "empty or no text"),
        (b'{"dataframe_split": {"data": [5, null]}}', "empty or no text"),
        (b'{"dataframe_split": {"columns": ["x", "prompt"], "data": [["a"]]}}', "'x' stands beside the prompts"),
        (prompts(*["a"] * 33), "1 to 32 prompts, got 33"),
        (prompts(*["a"] * 30_000), "1 to 32 prompts, got 30000"),
        (prompts("x" * 1001), "1001 characters"),
        (prompts(LONG), "210000 characters"),
        (body({"prompt": [{LONG: LONG}]}), "empty or no text"),
        (body({"prompt": [LONG]}, {"seed": LONG[:200_000]}), "characters"),
        (b'{"inputs": ["\\ud800"]}', "half a surrogate pair"),
        (b'{"inputs": ["a"], "params": 5}', "params are an object"),
        (b'{"inputs": ["a"], "params": []}', "params are an object"),
        (prompts("a", sed=1), "params have no 'sed'; did you mean seed?"),
        (prompts("a", **{LONG: 1}), "params have no 'SECRET-"),
        (prompts("a", __class__="x"), "params have no '__class__'"),
        (prompts("a", seed=-1), "seed: "),
        (prompts("a", seed=10**30), "seed: "),
        (prompts("a", seed="x" + LONG), "seed: "),
        (prompts("a", seed=[1]), "seed: "),
        (prompts("a", seed={"a": 1}), "seed: "),
        (prompts("a", seed=0.5), "seed: "),
        (b'{"inputs": ["a"], "params": {"guidance_scale": NaN}}', "guidance_scale: "),
        (b'{"inputs": ["a"], "params": {"guidance_scale": Infinity}}', "guidance_scale: "),
        (b'{"inputs": ["a"], "params": {"content_scale": -1e999}}', "content_scale: "),
        (prompts("a", num_inference_steps=0), "num_inference_steps: "),
        (prompts("a", num_inference_steps=True), "num_inference_steps: input should be no boolean, got True"),
        (prompts("a", num_inference_steps=10**9), "num_inference_steps: "),
        (prompts("a", height=0), "height: "),
        (prompts("a", height=33), "height: "),
        (prompts("a", width=10**6), "width must be at most 128"),
        (prompts("a \x1b[2J"), "prompt 0 "),
        (prompts("a", negative_prompt=LONG), "negative_prompt: "),
        (prompts("a", negative_prompt=None, style_scale="much"), "style_scale: "),
        (prompts(*["a"] * 32, height=128, width=128, num_inference_steps=1), "too much for one request"),
        (prompts("a", height=128, width=128, num_inference_steps=100), "too much for one request"),
        (prompts(*["a"] * 32, num_inference_steps=100), "too much for one request"),
    ],
    ids=lambda value: str(value[:50]) if isinstance(value, bytes) else value,
)  # fmt: skip
def test_a_request(guard, asked, phrase):
    refused(post(guard, asked), 400, phrase)


@pytest.mark.parametrize(
    "asked",
    [
        prompts("a", seed=None),
        prompts("a", seed="7"),
        prompts("a \u202e 👩‍👩‍👧 日本 " * 20),
        prompts("<script>alert(1)</script>"),
        prompts("{content.__class__} %s ${HOME}"),
        prompts("((((a:1.5)" * 50),
        body({"prompt": "a toy"}),
        body(["a toy"]),
        body("a toy"),
        body([{"prompt": "a toy"}]),
        body([{"prompt": "a toy"}], name="instances"),
        body({"columns": ["prompt"], "data": [["a toy"]]}, name="dataframe_split"),
        prompts(*["x" * 1000] * 32),
        prompts(*["\U0001f427" * 1000] * 32, num_inference_steps=1),
    ],
    ids=lambda value: str(value[:50]),
)
def test_what_can_be_drawn_is_drawn(guard, asked):
    said = post(guard, asked)
    assert said.status == 200 and set(said.json["predictions"]) == {"UE5H\n"}


@pytest.mark.parametrize(
    ("asked", "kind", "status"),
    [
        (b"x" * 600_000, "application/json", 413),
        (b"prompt\na toy\n", "text/csv", 415),
        (b"PAR1", "application/vnd.apache.parquet", 415),
        (b"\x80\x04c__builtin__\neval\n", "application/x-python-pickle", 415),
        (b"prompt=a", "application/x-www-form-urlencoded", 415),
        (b'{"inputs": ["a"]}', "", 415),
        (b'{"inputs": ["a"]}', "APPLICATION/JSON", 200),
        (b'{"inputs": ["a"]}', "application/json; charset=utf-16; x=y", 200),  # JSON says itself what it is encoded in
    ],
    ids=str,
)
def test_bodies_of_other_kinds(guard, asked, kind, status):
    said = post(guard, asked, kind=kind)
    assert said.status == status and len(said.body) < 400


@pytest.mark.parametrize("length", ["-1", "x", "99999999999999999999", "1"])
def test_a_length_that_is_not_the_bodys_does_no_harm(guard, length):
    assert post(guard, prompts("a toy"), content_length=length).status == 200
