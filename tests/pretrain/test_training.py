"""Training of the base model's parts at toy size: they learn, they resume to the same weights, they make a stock pipeline."""

import numpy as np
import pandas as pd
import pytest
import torch

from b4m_pipeline.pretrain import assemble, contrastive, denoiser, text, vae
from b4m_pipeline.pretrain.corpus import CorpusError, Drawings
from b4m_pipeline.pretrain.muon import Muon, orthogonalise
from b4m_pipeline.pretrain.params import CaptionParams, FurtherParams, PretrainParams

PARAMS = PretrainParams(
    size=32, device="cpu", output="x", clip_output="x", checkpoints="x",
    corpus={"source": "x", "contents": ["a"], "held_out_contents": [], "hands": ["twemoji"], "held_out_hands": [],
            "procedural_from": "twemoji", "unseen_share": 0.1, "min_hands": 8, "processes": 2},
    vae={"channels": [8, 8], "latent_channels": 8, "steps": 6, "batch_size": 4, "checkpoint_every": 1},
    captions={"alias": 0.0}, further=None,
    text={"vocabulary": 700, "max_length": 16, "widths": [16, 16], "layers": [2, 2], "placeholders": ["snq", "w@z"]},
    denoiser={"channels": [32, 64], "steps": 4, "batch_size": 4, "checkpoint_every": 1, "warmup_steps": 1,
              "ema": 0.998, "coloured": 1, "view_weights": [0.88, 0.09, 0.03]},
    clip={"width": 16, "layers": 2, "heads": 2, "text_width": 16, "text_layers": 2, "embedding": 16, "steps": 4,
          "batch_size": 4, "checkpoint_every": 1},
    report={"pairs": 96, "contents": [], "hands": [], "shown_hands": [], "targets": {}},
)  # fmt: skip


@pytest.fixture(scope="module")
def drawings() -> Drawings:
    """Squares and crosses in two colours."""
    rgba, rows = np.zeros((8, 32, 32, 4), np.uint8), []
    for index in range(8):
        colour = [(200, 30, 30), (30, 30, 200)][index % 2]
        if index < 4:
            rgba[index, 8:24, 8 + index : 24] = (*colour, 255)
        else:
            rgba[index, 14:18, 4 : 24 + index] = rgba[index, 4:28, 14:18] = (*colour, 255)
        content, hand = ("square", "cross")[index // 4], ("red", "blue")[index % 2]
        rows.append((content, hand, hand, "train", "shape", "CC0"))
    return Drawings(rgba, pd.DataFrame(rows, columns=["content", "hand", "style", "split", "keywords", "licence"]))


@pytest.fixture(scope="module")
def tokenizer(drawings):
    captions = text.caption_corpus(drawings.table, PARAMS.captions, PARAMS.text.placeholders, 0)
    return text.train_tokenizer(captions, PARAMS.text)


class Stop(Exception):
    pass


def stopped(function, module, monkeypatch, at: int):
    """Run `function`, which is stopped after its `at`-th checkpoint."""
    count, save = [], module.save_progress

    def save_and_stop(*progress):
        save(*progress)
        count.append(1)
        if len(count) == at:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_progress", save_and_stop)
        with pytest.raises(Stop):
            function()


def equal(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_vae_resumes_to_the_same_weights_and_normalises_its_latents(drawings, tmp_path, monkeypatch) -> None:
    def train(name):
        return vae.train_vae(drawings, 32, PARAMS.vae, tmp_path / name, 0, "cpu")

    stopped(lambda: train("a"), vae, monkeypatch, at=3)
    resumed, whole = train("a"), train("b")
    assert equal(resumed, whole)
    latents = vae.encode_means(whole, vae.to_tensor(drawings.on())) * whole.config.scaling_factor
    assert float(latents.std()) == pytest.approx(1, abs=0.05)


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


def test_the_denoisers_loss_falls(drawings, tokenizer, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    params = PARAMS.model_copy(update={"denoiser": PARAMS.denoiser.model_copy(update={"steps": 60, "checkpoint_every": 1})})
    views = denoiser.make_views(drawings, vae.make_vae(PARAMS.vae, 32).eval(), params.denoiser, 0)
    _, curve = denoiser.train_denoiser(drawings, views, tokenizer, params, tmp_path / "d", "cpu")
    assert [step for step, _ in curve] == list(range(params.denoiser.checkpoint_every, params.denoiser.steps + 1))
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


def test_clip_resumes_and_is_read_by_the_captioner(drawings, tokenizer, tmp_path, monkeypatch) -> None:
    def train(name):
        return contrastive.train_clip(drawings, tokenizer, PARAMS.clip, tmp_path / name, 0, "cpu")

    stopped(lambda: train("a"), contrastive, monkeypatch, at=2)
    resumed, whole = train("a"), train("b")
    assert equal(resumed, whole)
    contrastive.save_clip(whole, tokenizer, drawings, tmp_path / "clip")
    from b4m_pipeline.evaluation.judges import ClipJudge

    judge = ClipJudge(str(tmp_path / "clip"))
    from PIL import Image

    seen = judge.look([Image.fromarray(picture) for picture in drawings.on()[:2]])
    assert seen.content.shape == (2, 16) and judge.read(["a square emoji"]).shape == (1, 16)


def test_a_lesson_says_what_is_right_of_each_picture(drawings) -> None:
    school = contrastive.School(drawings, batch_size=8)
    assert school.words["content"] == ["cross", "square"] and school.words["style"] == ["blue", "red"]
    assert school.prompts()[:3] == ["a cross emoji", "a square emoji", "an emoji in blue style"]
    assert school.prompts()[4] == "an emoji on a white background"
    lessons = [school.lesson(np.random.default_rng(seed)) for seed in range(12)]
    without_style = with_ground = 0
    for lesson in lessons:
        assert lesson.pictures.shape == (8, 32, 32, 3) and torch.equal(lesson.true.diagonal(), torch.ones(8))
        for index, caption in enumerate(lesson.captions):
            content, style, ground = (int(lesson.right[kind][index]) for kind in ("content", "style", "ground"))
            assert school.words["content"][content] in caption
            assert (style < 0) == (" in " not in caption)
            assert ground == 0 or f"{school.words['ground'][ground]} background" in caption
            if style >= 0:  # colours are kept: the drawing's own is in the picture
                assert f"in {school.words['style'][style]} style" in caption
                colour = torch.tensor([200, 30, 30] if school.words["style"][style] == "red" else [30, 30, 200])
                assert ((lesson.pictures[index] - colour.float()).abs().amax(-1) < 30).any()
            without_style += style < 0
            with_ground += ground > 0
    assert 20 < without_style < 60 and 25 < with_ground < 65


def test_the_clips_loss_falls(drawings, tokenizer, tmp_path, caplog) -> None:
    """Knowing nothing costs the logarithms of 2 contents, 2 styles and 10 grounds, and half of the batch's."""
    caplog.set_level("INFO")
    changes = {"steps": 300, "batch_size": 8, "checkpoint_every": 300, "muon_learning_rate": 0.005, "width": 32}
    contrastive.train_clip(drawings, tokenizer, PARAMS.clip.model_copy(update=changes), tmp_path / "clip", 0, "cpu")
    (loss,) = [float(message.split()[-1]) for message in caplog.messages if message.startswith("CLIP step 300")]
    assert loss < 0.6 * (2 * np.log(2) + np.log(10) + np.log(8) / 2)


def test_textures_cover_the_share_asked_for() -> None:
    white = np.full((40, 32, 32, 3), 255, np.uint8)
    covered = (vae.texture(white, np.random.default_rng(0), 0.5) != 255).any((1, 2, 3))
    assert 10 < covered.sum() < 30
    assert np.array_equal(vae.texture(white, np.random.default_rng(0), 0.0), white)


def test_several_captions_of_one_picture_are_all_right() -> None:
    """Two pictures of one content in a batch: the best that can be is to be equally near to both, and nothing pulls there."""
    text = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    image = text.clone().requires_grad_()
    same = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])
    loss = contrastive.contrastive_loss(image, text, same, torch.tensor(50.0))
    loss.backward()
    assert loss.item() == pytest.approx(2 / 3 * np.log(2), abs=1e-4)
    assert image.grad.abs().max() < 1e-4
    wrong = contrastive.contrastive_loss(image[[2, 1, 0]], text, same, torch.tensor(50.0))
    assert wrong.item() > loss.item() + 1


def test_muon_orthogonalises_and_scales_by_shape() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 12, 30), (2, 30, 12)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=generator)))
        assert values.min() > 0.5 and values.max() < 1.4
    weight = torch.nn.Parameter(torch.zeros(8, 4, 3, 3))  # a convolution counts as (8, 36)
    weight.grad = torch.randn(weight.shape, generator=generator)
    Muon([weight], lr=0.1).step()
    update = torch.linalg.svdvals(weight.detach().flatten(1)) / 0.1
    assert update.min() > 0.5 and update.max() < 1.4


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
