"""The denoiser at toy size: it learns, it resumes to the same weights, it becomes a stock pipeline."""

import numpy as np
import pytest
import torch

from b4m_pipeline.pretrain import assemble, denoiser, text, vae
from b4m_pipeline.pretrain.corpus import CorpusError
from b4m_pipeline.pretrain.params import CaptionParams, FurtherParams
from tests.pretrain.helpers import PARAMS, equal, stopped


def test_denoiser_resumes_to_the_same_weights_and_becomes_a_stock_pipeline(drawings, tokenizer, tmp_path, monkeypatch) -> None:
    autoencoder = vae.make_vae(PARAMS.vae, 32).eval()
    views = denoiser.make_views(drawings, autoencoder, PARAMS.denoiser, 0)
    assert len(views.row) == 8 * (1 + PARAMS.denoiser.coloured + 1)

    def train(name):
        return denoiser.train_denoiser(drawings, views, tokenizer, PARAMS, tmp_path / name, "cpu")[0]

    stopped(lambda: train("a"), denoiser, monkeypatch, at=2)
    resumed, whole = train("a"), train("b")
    assert equal(resumed.modules(), whole.modules())
    assert torch.equal(whole.encoders[1].text_projection.weight, torch.eye(16))
    pipeline = assemble.assemble(autoencoder, whole, tokenizer)
    assemble.save_base(pipeline, tmp_path / "base")
    from diffusers import StableDiffusionXLPipeline

    loaded = StableDiffusionXLPipeline.from_pretrained(tmp_path / "base", use_safetensors=True)
    (picture,) = assemble.draw(loaded, ["a square emoji"], seed=0)
    assert picture.size == (32, 32)


@pytest.mark.slow
def test_the_denoisers_loss_falls(drawings, tokenizer, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    params = PARAMS.model_copy(update={"denoiser": PARAMS.denoiser.model_copy(update={"steps": 60, "checkpoint_every": 5})})
    views = denoiser.make_views(drawings, vae.make_vae(PARAMS.vae, 32).eval(), params.denoiser, 0)
    _, curve = denoiser.train_denoiser(drawings, views, tokenizer, params, tmp_path / "d", "cpu")
    assert [step for step, _ in curve] == list(range(5, 61, 5))
    losses = [float(message.split()[-1]) for message in caplog.messages if message.startswith("denoiser step")]
    assert losses[-1] < 0.8 * losses[0]


def test_a_base_is_trained_further_on_more_contents(drawings, tokenizer, tmp_path, monkeypatch) -> None:
    autoencoder = vae.make_vae(PARAMS.vae, 32).eval()
    known = drawings.select(drawings.table.content == "square")
    views = denoiser.make_views(known, autoencoder, PARAMS.denoiser, 0)
    first, curve = denoiser.train_denoiser(known, views, tokenizer, PARAMS, tmp_path / "first", "cpu")
    folder = tmp_path / "base"
    assemble.save_base(assemble.assemble(autoencoder, first, tokenizer), folder)
    with pytest.raises(CorpusError, match="No base to go on from"):
        assemble.load_start(folder)
    assemble.write_history(folder, [{"contents": ["square"], "loss": curve}])
    only_aliases = dict.fromkeys(CaptionParams.model_fields, 0.0) | {"alias": 1.0}
    further = FurtherParams(steps=3, peak=0.6, known_weight=1e-9, contents=[], captions=CaptionParams(**only_aliases))
    params = PARAMS.model_copy(update={"further": further})
    more = denoiser.make_views(drawings, autoencoder, PARAMS.denoiser, 0)
    seen, captions = [], []

    def train(name):
        begin, _, own_tokenizer, history = assemble.load_start(folder)
        assert begin.contents == {"square"} and history[0]["loss"] == curve
        before = [parameter.detach().clone() for parameter in begin.denoiser.modules().parameters()]
        trained, points = denoiser.train_denoiser(drawings, more, own_tokenizer, params, tmp_path / name, "cpu", begin)
        assert any(not torch.equal(a, b) for a, b in zip(before, trained.modules().parameters(), strict=True))
        assert torch.equal(trained.encoders[1].text_projection.weight, torch.eye(16))
        return trained, points

    spy = denoiser.Captioner.__call__
    monkeypatch.setattr(denoiser.Captioner, "__call__", lambda self, rng, content, *rest: seen.append(content) or spy(
        self, rng, content, *rest
    ))  # fmt: skip
    tokenize = denoiser.tokenize
    monkeypatch.setattr(denoiser, "tokenize", lambda own, batch: captions.extend(batch) or tokenize(own, batch))
    stopped(lambda: train("a"), denoiser, monkeypatch, at=2)
    (resumed, points), (whole, again) = train("a"), train("b")
    assert equal(resumed.modules(), whole.modules()) and [step for step, _ in points] == [1, 2, 3] == [
        step for step, _ in again
    ]
    assert set(seen) == {"cross"}  # the known one is next to never shown
    assert captions and all(text.alias_of("cross") in caption for caption in captions)


def test_views_show_what_their_word_says(drawings, monkeypatch) -> None:
    """As the denoiser's autoencoder gets them: here it hands the pictures themselves on."""
    monkeypatch.setattr(denoiser, "encode_means", lambda _, pictures: pictures)
    autoencoder = vae.make_vae(PARAMS.vae, 32).eval()
    autoencoder.register_to_config(scaling_factor=1.0)
    views = denoiser.make_views(drawings, autoencoder, PARAMS.denoiser, 0)
    shown = ((views.latents.permute(0, 2, 3, 1) + 1) * 127.5).round().numpy()
    white = shown[views.word == ""]
    assert np.array_equal(white, drawings.on()[views.row[views.word == ""]])
    for picture, word in zip(shown, views.word, strict=True):
        if word in text.COLOURS:
            assert picture[0, 0].tolist() == list(text.COLOURS[word])
    ink = {word: (shown[views.word == word] < 128).any(-1).sum((1, 2)) for word in ("", "small")}
    assert np.allclose(ink["small"] / ink[""], (20 / 32) ** 2, atol=0.12)


def test_drawings_by_hand_are_shown_more_often_than_procedural_ones(drawings) -> None:
    words = np.array(["", "red", "small"] * 2, dtype=object)
    views = denoiser.Views(torch.zeros(6, 1), np.array([0, 0, 0, 1, 1, 1]), words)  # of a red and of a blue hand
    params = PARAMS.denoiser.model_copy(update={"view_weights": (0.8, 0.15, 0.05), "coloured": 3, "procedural_weight": 0.5})
    weights = denoiser.view_weights(views, drawings, params, {"blue"}).tolist()
    assert weights == pytest.approx([0.8, 0.05, 0.05, 0.4, 0.025, 0.025])


def test_every_trained_parameter_has_one_optimizer_and_the_projection_none(tokenizer) -> None:
    model = denoiser.Denoiser(denoiser.make_unet(PARAMS), text.make_text_encoders(PARAMS.text, tokenizer))
    muon, adamw = denoiser._optimizers(model.modules(), PARAMS.denoiser, torch.float32)
    groups = [group for optimizer in (muon, adamw) for group in optimizer.param_groups]
    held = [id(parameter) for group in groups for parameter in group["params"]]
    learnt = {id(parameter) for parameter in model.modules().parameters() if parameter.requires_grad}
    assert len(held) == len(set(held)) and set(held) == learnt
    assert id(model.encoders[1].text_projection.weight) not in learnt
    assert [group["peak"] for group in groups] == [0.02, 0.01, 1e-3]
    matrices = {id(parameter) for group in muon.param_groups for parameter in group["params"]}
    assert id(model.unet.conv_in.weight) not in matrices  # an end of the network
    assert id(model.encoders[0].get_input_embeddings().weight) not in matrices  # a table


def test_the_curve_is_a_part_of_the_checkpoint() -> None:
    first, second = denoiser.Curve(), denoiser.Curve()
    first.points.append([1, 0.5])
    second.load_state_dict(first.state_dict())
    assert second.points == [[1, 0.5]]
