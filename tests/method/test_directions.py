"""The frame of words: what each half reads, and that the frozen part follows the words smoothly."""

import dataclasses

import pytest
import torch

from b4m_pipeline.method.combine import reconstruct, scale_halves
from b4m_pipeline.method.directions import Directions, pack_directions, polar, tell_apart, unpack_directions, word_grid
from b4m_pipeline.method.frame import FrameMismatchError, frame_of
from b4m_pipeline.method.layers import export, inject, load_halves
from tests.method.helpers import METADATA, export_half, randomise, words_frame

N = 24


def orthonormal(columns: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(N, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).Q


def test_a_turn_is_orthonormal_and_holds_the_directions_on_their_sides():
    drawn = orthonormal(8)
    own, rest = Directions(drawn[:, :4].float(), drawn[:, 4:].float()).turn(12, orthonormal(N, 1))
    whole = torch.cat([own, rest], 1)
    assert torch.allclose(whole.T @ whole, torch.eye(N, dtype=whole.dtype), atol=1e-6)
    assert own.shape == (N, 12) and torch.allclose(own[:, :4], drawn[:, :4], atol=1e-6)
    assert (own.T @ drawn[:, 4:]).abs().max() < 1e-6 and (rest.T @ drawn[:, :4]).abs().max() < 1e-6


@pytest.mark.parametrize("columns", [1, 3, 23])
def test_a_narrow_side_takes_as_many_directions_as_it_has_room_for(columns):
    drawn = orthonormal(8)
    own, rest = Directions(drawn[:, :4].float(), drawn[:, 4:].float()).turn(columns, orthonormal(N, 1))
    assert own.shape == (N, columns) and rest.shape == (N, N - columns)
    whole = torch.cat([own, rest], 1)
    assert torch.allclose(whole.T @ whole, torch.eye(N, dtype=whole.dtype), atol=1e-6)


def test_other_bases_of_the_same_directions_give_the_same_frozen_part(unet):
    """Eigenvectors have no signs of their own, and rounding differs from machine to machine."""
    frame = words_frame(unet)
    name, given = next(iter(frame.directions.items()))
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(2))).Q
    noise = 1e-6 * torch.randn(N, 4, generator=torch.Generator().manual_seed(3))
    other = Directions(polar(given.frozen @ turn + noise), polar(-given.learnt))
    moved = dataclasses.replace(frame, directions={name: other}, _turns={})
    first, second = frame.blocks(name), moved.blocks(name)
    assert (first.frozen_a - second.frozen_a).abs().max() < 1e-4
    assert torch.allclose(first.rest @ first.rest.T, second.rest @ second.rest.T, atol=1e-4)


def test_directions_are_those_in_which_known_words_differ():
    contents, styles = word_grid(list("abcdefgh"), list("uvwxyz"))
    assert len(contents) == 8 * 6 and [styles.count(style) for style in range(6)] == [8] * 6
    generator = torch.Generator().manual_seed(0)
    of_content, of_style = torch.randn(8, 3, generator=generator), torch.randn(6, 3, generator=generator)
    features = torch.zeros(len(contents), 2, N)
    features[:, 0, :3], features[:, 1, 5:8] = of_content[contents], of_style[styles]
    content, style = tell_apart(features, contents, styles)
    assert content.shape == style.shape == (N, 3)  # an eighth
    assert content[:3].square().sum() == pytest.approx(3, abs=1e-3) and style[5:8].square().sum() == pytest.approx(3, abs=1e-3)


def test_directions_come_back_from_text(unet):
    given = words_frame(unet).directions
    text = pack_directions(given)
    found = unpack_directions(text)
    assert found.keys() == given.keys() and text.count("data") == 1  # shared
    for layer, own in given.items():
        assert torch.equal(found[layer].frozen, own.frozen) and torch.equal(found[layer].learnt, own.learnt)


def test_each_half_reads_its_own_directions_alone(tiny_sdxl):
    halves = {side: export_half(tiny_sdxl, side, 1, frame_of=words_frame) for side in ("lora_A", "lora_B")}
    frame = frame_of(halves["lora_A"])
    for name, own in frame.directions.items():
        assert (halves["lora_B"].delta(name) @ own.learnt).abs().max() < 1e-5 < halves["lora_B"].delta(name).abs().max()
        assert (halves["lora_A"].delta(name) @ own.frozen).abs().max() < 1e-5 < halves["lora_A"].delta(name).abs().max()
        blocks = frame.blocks(name)
        assert (blocks.frozen_b @ blocks.frozen_a).norm() <= 1e-6


def test_joined_halves_can_be_scaled_and_trained_on(tiny_sdxl, unet):
    half_a, half_b = (export_half(tiny_sdxl, side, seed, frame_of=words_frame) for side, seed in (("lora_A", 1), ("lora_B", 2)))
    joined = reconstruct(half_a, half_b, METADATA | {"kind": "reconstructed", "content_side": "lora_B"})
    for name in joined.modules():
        assert torch.allclose(joined.delta(name), half_a.delta(name) + half_b.delta(name), atol=1e-5)
    without = scale_halves(joined, content=1.0, style=0.0)  # of lora_A
    assert all(torch.allclose(without.delta(name), half_b.delta(name), atol=1e-5) for name in joined.modules())
    frame = words_frame(unet)
    layers = inject(unet, frame, "free")
    load_halves(layers, joined, frame)
    again = export(layers, frame, METADATA)
    assert all(torch.allclose(again.tensors[key], joined.tensors[key], atol=1e-6) for key in joined.tensors)


def test_halves_of_other_text_encoders_are_refused_though_the_words_are_the_same(tiny_sdxl):
    half_a, half_b = (export_half(tiny_sdxl, side, 1, frame_of=words_frame) for side in ("lora_A", "lora_B"))
    turned = {name: Directions(own.learnt, own.frozen) for name, own in frame_of(half_b).directions.items()}
    half_b.metadata["frame_directions"] = pack_directions(turned)
    with pytest.raises(FrameMismatchError, match="text encoders"):
        reconstruct(half_a, half_b, METADATA)


def test_learning_moves_nothing_of_the_frozen_part(unet):
    frame = words_frame(unet)
    layers = inject(unet, frame, "free")
    randomise(layers)
    for name in frame.directions:
        blocks, (lora_a, _) = frame.blocks(name), layers[name].factors()
        assert torch.allclose(lora_a - frame.learnt_columns(name, lora_a), blocks.frozen_a, atol=1e-5)
