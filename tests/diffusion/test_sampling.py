"""Pictures for prompts of one's own: the same for the same seed, with their origin inside, by whichever adapter is named."""

import dataclasses
import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from b4m_pipeline.datasets.picture import DescribedPictureDataset
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.params import GenerateParams
from b4m_pipeline.diffusion.sampling import INFO_KEY, GenerationError, ImageRequest, draw, generate, read_prompts
from b4m_pipeline.inputs.params import ConceptParams
from b4m_pipeline.method.combine import join_halves, scale_halves
from b4m_pipeline.method.frame import FrameMismatchError, frame_of
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.training.params import BreakParams
from tests.conftest import PIXELS, TINY_FRAME, train_half
from tests.training.helpers import BREAK, CONTENT, STYLE

FRAME = FrameParams(**TINY_FRAME)


def params(**changes) -> GenerateParams:
    own = {"adapter": "x", "prompts": ["a snq toy in w@z style"], "images_per_prompt": 2, "steps": 2, "guidance_scale": 3.0}
    return GenerateParams(**own | changes)


@pytest.fixture(scope="module")
def halves(tiny_training_set, tiny_base):
    def half(kind: str, concept: ConceptParams):
        own = BreakParams(**BREAK | {"learning_rate": 0.1})
        return train_half(kind, tiny_training_set, tiny_base, FRAME, concept, own, 0)[0]

    return half("content", CONTENT), half("style", STYLE)


@pytest.fixture(scope="module")
def joined(halves):
    return join_halves(*halves, FRAME.content_side)


def pixels(pictures: dict[str, Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture, int) for picture in pictures.values()])


def test_a_picture_depends_on_its_seed_and_not_on_its_batch(joined, tiny_base):
    together = generate(joined, tiny_base, params(images_per_prompt=3, batch_size=3), 5)
    alone = generate(joined, tiny_base, params(images_per_prompt=3, batch_size=1), 5)
    assert list(together) == [f"000-a-snq-toy-in-w-z-style-{seed}" for seed in (5, 6, 7)]
    assert np.abs(pixels(together) - pixels(alone)).max() <= 1
    assert np.abs(pixels(together)[0] - pixels(together)[1]).max() > 1
    assert together["000-a-snq-toy-in-w-z-style-5"].size == (PIXELS, PIXELS)


def test_the_file_says_where_the_picture_came_from(joined, tiny_base, tmp_path):
    pictures = generate(joined, tiny_base, params(style_scale=0.5, negative_prompt="blur"), 0)
    picture = next(iter(pictures.values()))
    dataset = DescribedPictureDataset(filepath=str(tmp_path / "x.png"))
    dataset.save(picture)
    with Image.open(tmp_path / "x.png") as written:
        told = json.loads(written.info[INFO_KEY])
        assert np.array_equal(np.asarray(written), np.asarray(picture))
    assert told["prompt"] == "a snq toy in w@z style" and told["seed"] == 0 and told["style_scale"] == 0.5
    assert told["negative_prompt"] == "blur" and told["adapter"] == "cup-ink" and told["frame"] == joined.metadata["frame"]
    plain = DescribedPictureDataset(filepath=str(tmp_path / "y.png"))
    plain.save(Image.new("RGB", (4, 4)))  # nothing told of the one before
    assert INFO_KEY not in Image.open(tmp_path / "y.png").info


def test_scales_take_a_concept_away_or_leave_it(halves, joined, tiny_base):
    content, style = halves
    for scales, expected in (({"style": 0.0}, content), ({"content": 0.0}, style), ({}, joined)):
        scaled = scale_halves(joined, **scales)
        for module in joined.modules():
            assert torch.allclose(scaled.delta(module), expected.delta(module), atol=1e-6)
    half = scale_halves(joined, content=0.5, style=0.5)
    for module in joined.modules():  # orthogonal halves: no cross term, so the whole is linear in the scales
        assert torch.allclose(half.delta(module), 0.5 * joined.delta(module), atol=1e-6)
    assert torch.equal(scale_halves(content, style=0.0).delta(module), content.delta(module))
    assert frame_of(half).fingerprint == joined.metadata["frame"]


def test_without_its_halves_the_adapter_draws_what_the_base_draws(joined, tiny_base):
    base = generate(None, tiny_base, params(), 0)
    neither = generate(joined, tiny_base, params(content_scale=0.0, style_scale=0.0), 0)
    both = generate(joined, tiny_base, params(), 0)
    assert np.abs(pixels(base) - pixels(neither)).max() <= 1
    assert np.abs(pixels(base) - pixels(both)).max() > 1


def test_an_adapter_is_drawn_with_the_prompt_that_it_was_made_for(joined_adapter, tmp_path):
    made = dataclasses.replace(joined_adapter, metadata=joined_adapter.metadata | {"example_prompt": "a snq tea cup"})
    assert read_prompts(params(adapter="x", prompts=None), made) == ["a snq tea cup"]
    (tmp_path / "prompts.txt").write_text("a cat")
    assert read_prompts(params(adapter="x", prompts=None, prompts_file=str(tmp_path / "prompts.txt")), made) == ["a cat"]
    silent = {key: value for key, value in made.metadata.items() if key not in ("example_prompt", "content_token")}
    with pytest.raises(GenerationError, match="no prompt"):
        read_prompts(params(adapter="x", prompts=None), dataclasses.replace(made, metadata=silent))


def test_a_prompt_that_is_not_read_to_its_end_is_named(tiny_base, caplog):
    long = "a snq toy " + "very " * 30 + "far away"
    drawn = generate(None, tiny_base, params(prompts=["a toy", long]), 0)
    (said,) = [message for message in caplog.messages if "text encoder reads" in message]
    assert said.endswith(long) and len(drawn) == 2 * params().images_per_prompt


def test_prompts_come_from_parameters_and_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("# of the harbour\n\na snq toy on a pier\n  a snq toy at sea \n", encoding="utf-8-sig")
    assert read_prompts(params(prompts_file=str(file)), None) == [
        "a snq toy in w@z style",
        "a snq toy on a pier",
        "a snq toy at sea",
    ]
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(GenerationError, match="UTF-8"):
        read_prompts(params(prompts_file=str(file)), None)
    with pytest.raises(GenerationError, match="cannot be read"):
        read_prompts(params(prompts_file=str(tmp_path / "none")), None)
    with pytest.raises(GenerationError, match="empty"):
        read_prompts(params(prompts=[" "]), None)
    with pytest.raises(ValueError, match="what to draw"):
        params(prompts=[])
    with pytest.raises(ValueError, match="need an adapter"):
        params(adapter=None, style_scale=0.5)


def test_an_adapter_of_another_base_model_is_refused(joined, tiny_base, monkeypatch):
    monkeypatch.setattr("b4m_pipeline.diffusion.sampling.base_model_id", lambda base: "another")
    with pytest.raises(GenerationError, match="not of another"):
        generate(joined, tiny_base, params(), 0)


def test_an_adapter_without_halves_cannot_be_scaled(tiny_adapter):
    del tiny_adapter.metadata["content_side"]
    with pytest.raises(FrameMismatchError, match="no halves"):
        scale_halves(tiny_adapter)


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler", "UniPCMultistepScheduler"])
def test_a_drawing_begins_with_a_picture_under_noise_whatever_the_scheduler(scheduler, tiny_base, monkeypatch):
    pipeline = load_family(tiny_base).load_pipeline()
    given = {"timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": True, "steps_offset": 0}
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config, **given, skip_prk_steps=True)
    picture = Image.linear_gradient("L").resize((PIXELS, PIXELS)).convert("RGB")
    start = load_family(tiny_base).encode_pictures([picture])[0][0]
    # A denoiser that knows the picture: from wherever a drawing starts on the way to it, it arrives.
    known = start[None]

    def knows(noisy, timestep, **_):
        share = DDPMScheduler.from_config(pipeline.scheduler.config).alphas_cumprod[int(timestep)]
        noise = (noisy - share.sqrt() * known) / (1 - share).sqrt()
        velocity = share.sqrt() * noise - (1 - share).sqrt() * known
        return (velocity if pipeline.scheduler.config.prediction_type == "v_prediction" else noise,)

    monkeypatch.setattr(pipeline.unet, "forward", knows)
    settings = {"steps": 5, "guidance_scale": 1.0, "batch_size": 1, "size": (PIXELS, PIXELS)}
    begun = next(iter(draw(pipeline, [ImageRequest("a snq toy", 3)], **settings, starts=[start], strength=0.6)))[1]
    decoded = pipeline.vae.decode(known / pipeline.vae.config.scaling_factor).sample
    wanted = np.asarray(pipeline.image_processor.postprocess(decoded.detach())[0], int)
    assert np.abs(np.asarray(begun, int) - wanted).max() <= 2
    assert type(pipeline.scheduler).__name__ == scheduler  # the next drawing is by the base model's own


def test_the_less_a_picture_is_drawn_over_the_nearer_to_it(joined, tiny_base):
    family = load_family(tiny_base)
    pipeline = family.load_pipeline()
    starts = [mean for mean, _ in family.encode_pictures([Image.new("RGB", (PIXELS, PIXELS), "red")] * 2)]
    request, settings = (
        [ImageRequest("a snq toy", 1)],
        {"steps": 10, "guidance_scale": 1.0, "batch_size": 1, "size": (PIXELS, PIXELS)},
    )

    def drawn(**more):
        return np.asarray(next(iter(draw(pipeline, request, **settings, **more)))[1], int)

    assert np.array_equal(drawn(starts=starts, strength=1.0), drawn())
    assert np.abs(drawn(starts=starts, strength=0.5) - drawn()).max() > 1
