"""Adapters from strangers, or half written: none is read, and none reaches the registry."""

import json
import math
import sys

import mlflow
import pytest
import torch
from kedro.io import DatasetError
from safetensors.torch import load_file, save_file

from b4m_pipeline.datasets.adapter import AdapterDataset
from b4m_pipeline.diffusion.params import BaseModelParams, GenerateParams
from b4m_pipeline.library.compose import fetch_part
from b4m_pipeline.method.adapter import WEIGHTS_NAME, AdapterError
from b4m_pipeline.method.files import load_adapter, save_adapter
from b4m_pipeline.pipelines.generate.nodes import draw_prompts
from b4m_pipeline.registry.adapters import RegistrationError, fetch_adapter, register_adapter
from b4m_pipeline.registry.serving import _load_pyfunc
from tests.hostile.helpers import KEY, LAYERS, is_one_line, whole, write

OTHER = "mid.attn2.to_k.lora_B.weight"
DEEP = "[" * 100_000 + "]" * 100_000


def about(**changes):
    """Metadata with other fields; None: without."""

    def spoil(adapter):
        adapter.metadata |= changes
        for key in [key for key, value in changes.items() if value is None]:
            del adapter.metadata[key]

    return spoil


def frame(**changes):
    """A frame that is described otherwise."""
    return lambda adapter: adapter.metadata.update(
        frame_config=json.dumps(json.loads(adapter.metadata["frame_config"]) | changes)
    )


def tensors(**changes):
    def spoil(adapter):
        for name, change in changes.items():
            key = {"a": KEY, "b": OTHER}[name]
            if change is None:
                del adapter.tensors[key]
            else:
                adapter.tensors[key] = change(adapter.tensors[key].clone())

    return spoil


def config(**changes):
    return lambda adapter: adapter.lora_config.update(changes)


def put(key, value):
    return lambda adapter: adapter.tensors.update({key: value})


def filled(value):
    return lambda tensor: tensor.index_fill_(0, torch.tensor([1]), value)


SPOILT = {
    "NaN": (tensors(a=filled(math.nan)), "values that are no numbers"),
    "inf": (tensors(b=filled(math.inf)), "values that are no numbers"),
    "-inf": (tensors(b=filled(-math.inf)), "values that are no numbers"),
    "whole numbers": (tensors(a=lambda tensor: tensor.int()), "values that are no numbers"),
    "no tensors": (lambda adapter: adapter.tensors.clear(), "holds no tensors"),
    "half a layer": (tensors(a=None), "lacks one of its two factors"),
    "a layer less": (
        lambda adapter: [adapter.tensors.pop(key) for key in list(adapter.tensors) if "to_k" in key],
        "layers are not its frame's",
    ),
    "a layer more": (
        lambda adapter: adapter.tensors.update({"x.lora_A.weight": torch.ones(4, 2), "x.lora_B.weight": torch.ones(2, 4)}),
        "layers are not its frame's",
    ),
    "a stranger's tensor": (put("position_ids", torch.ones(3)), "no part of a LoRA"),
    "a path for a layer": (put("../../x.lora_C.weight", torch.ones(4, 6)), "no part of a LoRA"),
    "transposed": (tensors(a=lambda tensor: tensor.T), "has the shape"),
    "too narrow": (tensors(a=lambda tensor: tensor[:, :5]), "where its frame has"),
    "too short": (tensors(b=lambda tensor: tensor[:7]), "where its frame has"),
    "another rank": (tensors(a=lambda tensor: tensor[:3], b=lambda tensor: tensor[:, :3]), "its rank is 4"),
    "a vector": (tensors(a=lambda tensor: tensor.flatten()), "has the shape"),
    "empty": (tensors(a=lambda tensor: tensor[:0]), "its rank is 4"),
    "rank 0": (config(r=0), "its rank is 0"),
    "rank -4": (config(r=-4), "its rank is -4"),
    "rank 10^9": (config(r=10**9), "its rank is 1000000000"),
    "rank as text": (config(r="4"), "its rank is '4'"),
    "rank true": (config(r=True), "its rank is True"),
    "no rank": (config(r=None), "its rank is None"),
    "alpha 0": (config(lora_alpha=0), "its alpha 0"),
    "alpha NaN": (config(lora_alpha=math.nan), "its alpha nan"),
    "alpha inf": (config(lora_alpha=math.inf), "its alpha inf"),
    "another alpha": (config(lora_alpha=8.0), "not its frame's"),
    "config is a list": (lambda adapter: setattr(adapter, "lora_config", {}), "its rank is None"),
    "foreign fingerprint": (about(frame="f" * 16), "its frame is not"),
    "no frame": (about(frame_config="{}"), "frame_config.seed must be given"),
    "frame of text": (about(frame_config="frame"), "frame_config: invalid JSON"),
    "frame of a list": (about(frame_config="[]"), "frame_config: "),
    "frame nested": (about(frame_config=DEEP), "frame_config: "),
    "frame of rank 10^9": (frame(rank=10**9), "its frame "),
    "frame of rank 0": (frame(rank=0), "frame_config.rank: "),
    "frame of rank 4.5": (frame(rank=4.5), "frame_config.rank: "),
    "split NaN": (frame(split=math.nan), "frame_config"),
    "split 1": (frame(split=1.0), "frame_config.split: "),
    "scale inf": (frame(scale=math.inf), "frame_config"),
    "an unknown init": (frame(init="exec"), "frame_config.init: "),
    "no layers": (frame(layers={}), "frame_config.layers: "),
    "layers as a list": (frame(layers=[1]), "frame_config.layers: "),
    "layers of no size": (frame(layers={key: [0, -1] for key in LAYERS}), "frame_config.layers"),
    "layers of one size": (frame(layers={key: [8] for key in LAYERS}), "frame_config.layers"),
    "a field too many": (frame(order="x"), "its frame cannot be read"),
    "directions of text": (about(frame_directions="x"), "frame_directions: "),
    "directions without data": (about(frame_directions='[{"layers": ["mid.attn2.to_k"]}]'), "its frame cannot be read"),
    "directions that are no base64": (
        about(frame_directions='[{"layers": ["mid.attn2.to_k"], "shape": [6, 1], "data": "!"}]'), "its frame cannot be read"
    ),
    "directions that are no numbers": (
        about(frame_directions='[{"layers": ["mid.attn2.to_k"], "shape": [6, 1], "data": "' + "AADAfwAAwH8A" * 4 + '"}]'),
        "frame",
    ),
    "no kind": (about(kind=None), "kind must be given"),
    "an unknown kind": (about(kind="pickle"), "kind: "),
    "no name": (about(name=None), "name must be given"),
    "an empty name": (about(name=""), "name: must be letters"),
    "a name of 5000 letters": (about(name="x" * 5000), "name: must have at most 240 bytes"),
    "a name of 81 Chinese characters": (about(name="名" * 81), "name: must have at most 240 bytes"),
    "a name of two lines": (about(name="cup\n12:00:00 INFO all is well"), "name: must be letters"),
    "a name with NUL": (about(name="cup\0"), "name: must be letters"),
    "a name that leads out": (about(name="../../x"), "name: must be letters"),
    "a name with a quote": (about(name="cup' or '1'='1"), "name: must be letters"),
    "a concept of two lines": (about(style_name="ink\nERROR"), "style_name: must be letters"),
    "no concept": (about(content_name=None), "lacks content_name"),
    "one token": (about(style_token=None), "lacks style_token"),
    "an empty token": (about(content_token=""), "lacks content_token"),
    "a token of two lines": (about(content_token="snq\nx"), "content_token: must be a word"),
    "a token of 5000 letters": (about(content_token="x" * 5000), "content_token: must have at most 80"),
    "a noun with an escape": (about(noun="\x1b[2J"), "noun: must be a word"),
    "a prompt of two lines": (about(example_prompt="a\nb"), "example_prompt: must be one line"),
    "a prompt of 6000 letters": (about(example_prompt="x" * 6000), "example_prompt: "),
    "a base model of two lines": (about(base_model="some/model\nx"), "base_model: must be one line"),
    "another field of two lines": (about(author="me\r\nERROR x"), "author: must be one line"),
    "a number for text": (about(resolution=32), "'resolution' is no text"),
    "null for text": (lambda adapter: adapter.metadata.update(noun=None), "'noun' is no text"),
    "resolution 10^9": (about(resolution="1000000000"), "resolution: must be a multiple of 8"),
    "resolution -8": (about(resolution="-8"), "resolution: must be a multiple of 8"),
    "resolution 12": (about(resolution="12"), "resolution: must be a multiple of 8"),
    "resolution ٣٢": (about(resolution="x٣٢"), "resolution: must be a multiple of 8"),
    "params of a list": (about(params="[]"), "params: "),
    "params of text": (about(params="steps"), "params: invalid JSON"),
    "params nested": (about(params=DEEP), "params: "),
    "params with a list for a group": (about(params='{"train": [1]}'), "params.train: "),
    "parents that are one": (about(parents='"models:/x/1"'), "parents: "),
    "parents of two lines": (about(parents='["a\\nb"]'), "parents[0]: must be one line"),
    "pictures of text": (about(pictures='{"content": "many"}'), "pictures.content: "),
    "a step of text": (about(kept_step="last"), "kept_step: "),
    "figures of text": (about(kept_step="1", kept_figures='{"1": "good"}'), "kept_figures"),
    "no digest of its data": (about(data_digest=""), "data_digest: "),
    "an unknown side": (about(content_side="lora_C"), "content_side: "),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_adapter_is_not_read(tmp_path, name) -> None:
    spoil, said = SPOILT[name]
    adapter = whole()
    spoil(adapter)
    with pytest.raises(AdapterError) as error:
        load_adapter(write(adapter, tmp_path))
    assert said in str(error.value) and is_one_line(str(error.value))


@pytest.mark.parametrize(
    "b4m",
    ["[]", "5", "null", '"text"', "", "{", "{}", DEEP, '{"a": ' * 50_000 + "1" + "}" * 50_000, "NaN", '{"kind": "made"}'],
    ids=["list", "number", "null", "text", "nothing", "brace", "empty", "deep list", "deep mapping", "NaN", "kind alone"],
)  # fmt: skip
def test_metadata_of_another_shape_is_one_error(tmp_path, b4m) -> None:
    with pytest.raises(AdapterError) as error:
        load_adapter(write(whole(), tmp_path, b4m))
    assert is_one_line(str(error.value))


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"half": "both"}, "not which"), ({"half": None}, "lacks half"), ({"token": None}, "lacks token"),
     ({"token": "a  b"}, "token: must be a word"), ({"params": "{}"}, "not how it was trained"),
     ({"half": "lora_C"}, "half: ")],
    ids=str,
)  # fmt: skip
def test_a_half_must_say_which(tmp_path, changes, said) -> None:
    adapter = whole("content")
    about(**changes)(adapter)
    with pytest.raises(AdapterError, match=said):
        load_adapter(write(adapter, tmp_path))


@pytest.mark.parametrize("kind", ["made", "content", "merged"])
def test_whole_adapters_are_read(tmp_path, kind) -> None:
    assert load_adapter(write(whole(kind), tmp_path)).metadata == whole(kind).metadata


def read_by(reader: str, folder, tmp_path):
    """Give the folder to a way of reading it."""
    match reader:
        case "register":
            return register_adapter(folder)
        case "fetch" | "export":  # kedro export fetches
            return fetch_adapter(str(folder))
        case "generate":
            return draw_prompts(GenerateParams(adapter=str(folder), prompts=["x"]), BaseModelParams(path="x"), 0)
        case "compose":
            return fetch_part(str(folder), BaseModelParams(path="x"))
        case "dataset":
            return AdapterDataset(filepath=str(folder)).load()


@pytest.mark.parametrize("reader", ["register", "fetch", "generate", "compose", "dataset"])
def test_every_reader_refuses_it(tmp_path, reader, tracking) -> None:
    adapter = whole()
    adapter.tensors[KEY][0, 0] = math.nan
    with pytest.raises((AdapterError, DatasetError), match="values that are no numbers"):
        read_by(reader, write(adapter, tmp_path / "evil"), tmp_path)
    assert tracking.search_registered_models() == []


@pytest.mark.parametrize(
    ("given", "said"),
    [({"alias": "a b"}, "alias must be letters"), ({"alias": ""}, "alias must be letters"),
     ({"alias": "latest"}, "alias must not be"),
     ({"alias": "v1"}, "alias must not be"), ({"alias": "x" * 300}, "alias must have"),
     ({"prefix": "a/b"}, "must be letters"), ({"prefix": ""}, "must be letters"),
     ({"prefix": "a\nb"}, "must be letters"), ({"prefix": "x" * 81}, "at most 80 bytes")],
    ids=str,
)  # fmt: skip
def test_names_in_the_registry_are_plain(tmp_path, given, said) -> None:
    with pytest.raises(RegistrationError, match=said) as error:
        register_adapter(write(whole(), tmp_path), **given)
    assert is_one_line(str(error.value))


@pytest.fixture
def logged(tiny_adapter, tracking, tmp_path):
    """Folder of a registered adapter in the store of artifacts."""
    register_adapter(save_adapter(tiny_adapter, tmp_path / "made").parent)
    return next((tmp_path / "mlartifacts").glob("models/*/artifacts"))


def changed(logged) -> None:
    file = logged / "adapter_weights" / WEIGHTS_NAME
    header = {"b4m": "{}"}
    tensors = {key: value + 1 for key, value in load_file(file).items()}
    save_file(tensors, file, metadata=header)


def edited(logged, before: str, after: str) -> None:
    file = logged / "MLmodel"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


TAMPERED = {
    "weights": (changed, "its digest is not the one"),
    "no weights": (lambda logged: (logged / "adapter_weights" / WEIGHTS_NAME).unlink(), "holds no weights"),
    "weights elsewhere": (
        lambda logged: edited(logged, "adapter_weights: adapter_weights", "adapter_weights: ../../../../made"),
        "holds no weights",
    ),
    "no digest": (lambda logged: edited(logged, "weights_sha256", "weights_md5"), "lacks 'weights_sha256'"),
    "no YAML": (lambda logged: (logged / "MLmodel").write_text("a: [1"), "MLmodel cannot be read"),
    "a list": (lambda logged: (logged / "MLmodel").write_text("[1]"), "MLmodel cannot be read"),
    "a tag": (
        lambda logged: (logged / "MLmodel").write_text("!!python/object/apply:os.system [true]"), "MLmodel cannot be read"
    ),
    "no flavor": (lambda logged: edited(logged, "  diffusers:\n", "  another:\n"), "lacks 'diffusers'"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
def test_what_was_logged_is_not_believed_either(logged, name) -> None:
    tamper, said = TAMPERED[name]
    tamper(logged)
    with pytest.raises(AdapterError, match=said) as error:
        fetch_adapter("models:/b4m-make-cup-ink@candidate")
    assert is_one_line(str(error.value)) and str(error.value).startswith("models:/b4m-make-cup-ink/1")


def test_weights_that_were_swapped_with_their_digest_are_noticed(logged, tiny_adapter, tmp_path) -> None:
    other = next((tmp_path / "mlartifacts").glob("models/*/artifacts"))
    tiny_adapter.tensors = {key: tensor + 1 for key, tensor in tiny_adapter.tensors.items()}
    register_adapter(save_adapter(tiny_adapter, tmp_path / "second").parent)
    (second,) = (each for each in (tmp_path / "mlartifacts").glob("models/*/artifacts") if each != other)
    for name in ("MLmodel", f"adapter_weights/{WEIGHTS_NAME}"):
        (second / name).write_bytes((other / name).read_bytes())
    with pytest.raises(AdapterError, match="its digest is not the one"):
        fetch_adapter("models:/b4m-make-cup-ink/2")
    fetch_adapter("models:/b4m-make-cup-ink/1")


def test_code_beside_weights_is_not_run(logged) -> None:
    (logged / "code").mkdir()
    (logged / "code/json.py").write_text("raise SystemExit('run')")
    edited(logged, "code: null", "code: code")
    before = list(sys.path)
    fetch_adapter("models:/b4m-make-cup-ink/1")
    assert sys.path == before


def test_a_service_refuses_other_weights_than_were_logged(logged) -> None:
    changed(logged)
    with pytest.raises(AdapterError, match="its digest is not the one"):
        _load_pyfunc(str(logged))
    with pytest.raises(AdapterError, match="its digest is not the one"):
        mlflow.pyfunc.load_model("models:/b4m-make-cup-ink/1")
