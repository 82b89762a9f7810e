"""Checkpoints: whole or not there, readable without pickle, and of one training alone."""

import os
import pickle

import pytest
import torch
from safetensors import safe_open

from b4m_pipeline.training import checkpoints
from b4m_pipeline.training.checkpoints import CheckpointError, load_checkpoint, resume_progress, save_checkpoint, save_progress

STATE = {
    "step": 3,
    "name": "content_break",
    "rate": 1e-3,
    "stopped": False,
    "scaler": None,
    "weights": [torch.arange(6.0).view(2, 3), torch.tensor([1, 2], dtype=torch.int64)],
    "nested": {
        0: {"exp_avg": torch.full((3,), 0.5, dtype=torch.bfloat16)},
        1: {},
        "mixed": [1, [torch.tensor(True)], {"a": []}],
    },
    "scalar": torch.tensor(2.5, dtype=torch.float16),
    "empty": torch.zeros(0, 4),
}


def same(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, list):
        return isinstance(second, list) and len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and first == second


def test_a_nest_comes_back_as_it_was(tmp_path):
    save_checkpoint(tmp_path / "deep/er/c.safetensors", STATE)
    again = load_checkpoint(tmp_path / "deep/er/c.safetensors")
    assert same(again, STATE) and 0 in again["nested"]  # a number stays one as a key
    assert not same(again, STATE | {"step": 4})


def test_the_file_has_the_values_of_its_moment_and_views_of_one_tensor_too(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    state = {"whole": whole, "row": whole[1], "turned": whole.T}
    save_checkpoint(tmp_path / "c.safetensors", state)
    whole.zero_()
    again = load_checkpoint(tmp_path / "c.safetensors")
    assert again["row"].tolist() == [4, 5, 6, 7] and again["turned"].shape == (4, 3) and again["whole"].sum() == 66


def test_an_optimizer_goes_on_as_if_it_had_not_stopped(tmp_path):
    def stepped(steps: int, weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        for _ in range(steps):
            optimizer.zero_grad()
            (weight - 1).square().sum().backward()
            optimizer.step()
        return weight.detach().clone()

    def fresh():
        weight = torch.nn.Parameter(torch.zeros(3))
        return weight, torch.optim.AdamW([weight], lr=0.1)

    weight, optimizer = fresh()
    stepped(2, weight, optimizer)
    save_checkpoint(tmp_path / "c.safetensors", {"weight": weight, "optimizer": optimizer.state_dict()})
    again, other = fresh()
    state = load_checkpoint(tmp_path / "c.safetensors")
    again.data.copy_(state["weight"])
    other.load_state_dict(state["optimizer"])
    assert torch.equal(stepped(3, again, other), stepped(3, weight, optimizer))


def test_nothing_in_it_is_pickled(tmp_path):
    file = tmp_path / "c.safetensors"
    save_checkpoint(file, STATE)
    with safe_open(file, framework="pt") as handle:
        assert set(handle.metadata()) == {"skeleton"} and len(handle.keys()) == 6
    content = file.read_bytes()
    assert not any(content.startswith(bytes([0x80, protocol])) for protocol in range(6)) and not content.startswith(b"PK")
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(content)


@pytest.mark.parametrize(
    "harm", [lambda content: b"", lambda content: content[:-7], lambda content: b"\xff" * 64, lambda content: b"x"]
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, harm):
    file = tmp_path / "c.safetensors"
    save_checkpoint(file, STATE)
    file.write_bytes(harm(file.read_bytes()))
    with pytest.raises(CheckpointError, match=r"c\.safetensors is not a readable checkpoint .*Delete it to start anew"):
        load_checkpoint(file)


def test_another_programs_file_is_no_checkpoint(tmp_path):
    from safetensors.torch import save_file

    for metadata in (None, {"format": "pt"}, {"skeleton": "{"}, {"skeleton": '{"@": "7"}'}):
        save_file({"a": torch.zeros(1)}, tmp_path / "c.safetensors", metadata=metadata)
        with pytest.raises(CheckpointError, match="Delete it"):
            load_checkpoint(tmp_path / "c.safetensors")


def test_a_kill_before_the_file_is_in_place_leaves_the_one_before(tmp_path, monkeypatch):
    file = tmp_path / "c.safetensors"
    save_checkpoint(file, {"step": 1, "weight": torch.ones(2)})

    def killed(source, target):
        assert os.path.getsize(source) > 0  # all of it is written by then
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(file, {"step": 2, "weight": torch.zeros(2)})
    assert load_checkpoint(file)["step"] == 1
    save_checkpoint(file, {"step": 3, "weight": torch.zeros(2)})  # what the kill left is in nobody's way
    assert load_checkpoint(file)["step"] == 3 and [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_what_cannot_be_written_leaves_the_file_before(tmp_path):
    file = tmp_path / "c.safetensors"
    save_checkpoint(file, {"step": 1})
    with pytest.raises(TypeError):
        save_checkpoint(file, {"step": object()})
    assert load_checkpoint(file) == {"step": 1}


def parts(seed: int) -> dict:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = torch.nn.Linear(3, 2)
    return {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1 + seed, momentum=0.9)}


def test_progress_is_gone_on_with_by_the_same_fingerprint_alone(tmp_path, caplog):
    file, own = tmp_path / "vae.safetensors", parts(0)
    save_progress(file, "a", 7, own)
    other, before = parts(1), parts(1)
    assert resume_progress(file, "b", other) == 0
    assert "belongs to other data or parameters: training starts anew" in caplog.text
    assert torch.equal(other["model"].weight, before["model"].weight) and other["optimizer"].param_groups[0]["lr"] == 1.1
    assert resume_progress(file, "a", other) == 7
    assert torch.equal(other["model"].weight, own["model"].weight) and other["optimizer"].param_groups[0]["lr"] == 0.1


def test_progress_starts_at_nothing_where_there_is_no_file_and_stops_at_a_damaged_one(tmp_path):
    assert resume_progress(tmp_path / "none.safetensors", "a", parts(0)) == 0
    (tmp_path / "bad.safetensors").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        resume_progress(tmp_path / "bad.safetensors", "a", parts(0))
