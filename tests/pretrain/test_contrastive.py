"""The small CLIP at toy size."""

import numpy as np
import pytest
import torch

from b4m_pipeline.pretrain import contrastive
from tests.pretrain.helpers import PARAMS, equal, stopped


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


@pytest.mark.slow
def test_the_clips_loss_falls(drawings, tokenizer, tmp_path, caplog) -> None:
    """Knowing nothing costs the logarithms of 2 contents, 2 styles and 10 grounds, and half of the batch's."""
    caplog.set_level("INFO")
    changes = {"steps": 200, "batch_size": 8, "checkpoint_every": 200, "muon_learning_rate": 0.005, "width": 32}
    contrastive.train_clip(drawings, tokenizer, PARAMS.clip.model_copy(update=changes), tmp_path / "clip", 0, "cpu")
    (loss,) = [float(message.split()[-1]) for message in caplog.messages if message.startswith("CLIP step 200")]
    assert loss < 0.6 * (2 * np.log(2) + np.log(10) + np.log(8) / 2)


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


def test_prompts_of_single_words_have_the_right_article() -> None:
    assert contrastive.content_prompt("owl") == "an owl emoji" and contrastive.style_prompt("noto") == "an emoji in noto style"
    assert contrastive.ground_prompt("orange") == "an emoji on an orange background"


def test_drawings_keep_their_colours_where_that_is_asked(drawings) -> None:
    rows, grounds = drawings.rgba[[0, 1] * 8], np.full((16, 3), 255)
    keep = np.ones(16, bool)
    kept, loose = (contrastive.augment(rows, grounds, np.random.default_rng(0), own) for own in (keep, ~keep))
    assert kept.shape == (16, 32, 32, 3) and kept.dtype == np.uint8

    def has_own_colour(picture: np.ndarray, drawing: np.ndarray) -> bool:
        colour = drawing[drawing[..., 3] > 0][0, :3].astype(int)
        return bool((np.abs(picture.astype(int) - colour).max(-1) < 30).any())

    shown = [[has_own_colour(*pair) for pair in zip(pictures, rows, strict=True)] for pictures in (kept, loose)]
    assert all(shown[0]) and 0 < sum(shown[1]) < 16
    assert not np.array_equal(kept[0], kept[2])  # moved and resized


def test_accuracy_counts_the_right_word_among_all(drawings, tokenizer, monkeypatch) -> None:
    model = contrastive.make_clip(PARAMS.clip, tokenizer, 32).eval()
    words = sorted(set(drawings.table["content"]))
    one_hot = torch.eye(len(words))
    seen = iter([one_hot[[words.index(word) for word in drawings.table["content"]]], one_hot[[0] * len(drawings.table)]])

    class Output:
        def __init__(self, value):
            self.pooler_output = value

    monkeypatch.setattr(model, "get_text_features", lambda input_ids: Output(one_hot))
    monkeypatch.setattr(model, "get_image_features", lambda pixel_values: Output(next(seen)))
    assert contrastive.zero_shot_accuracy(model, tokenizer, drawings, "content") == {"top1": 1.0, "top5": 1.0, "words": 2}
    always_the_first = contrastive.zero_shot_accuracy(model, tokenizer, drawings, "content")
    assert always_the_first["top1"] == 0.5
