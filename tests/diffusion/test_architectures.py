from types import SimpleNamespace

import pytest
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from b4m_pipeline.diffusion.architectures import ARCHITECTURES, architecture_of, base_version
from b4m_pipeline.diffusion.families import load_family
from b4m_pipeline.diffusion.params import BaseModelParams


def family(pipeline, width, prediction="epsilon"):
    """What is asked of a family, with the numbers of real models, whose weights are not here."""
    return SimpleNamespace(
        pipeline_class=pipeline,
        empty_denoiser=lambda: SimpleNamespace(config={"cross_attention_dim": width}),
        load_noise_schedule=lambda: DDIMScheduler(prediction_type=prediction),
    )


@pytest.mark.parametrize(
    ("pipeline", "width", "prediction", "name", "version"),
    [
        (StableDiffusionPipeline, 768, "epsilon", "stable-diffusion-v1", "sd_v1"),
        (StableDiffusionPipeline, 1024, "epsilon", "stable-diffusion-v2-512", "sd_v2"),
        (StableDiffusionPipeline, 1024, "v_prediction", "stable-diffusion-v2-768-v", "sd_v2_v"),
        (StableDiffusionXLPipeline, 2048, "epsilon", "stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
        (StableDiffusionXLPipeline, 2048, "v_prediction", "stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
        (StableDiffusionXLPipeline, 1280, "epsilon", "other", None),  # the refiner
        (StableDiffusionPipeline, 2048, "epsilon", "other", None),
    ],
)
def test_real_models_have_their_names(pipeline, width, prediction, name, version):
    assert architecture_of(family(pipeline, width, prediction)) == {"architecture": name, "prediction_type": prediction}
    assert base_version(name) == version


def test_models_like_no_others_are_called_so(tiny_sdxl, tiny_sd):
    found = [architecture_of(load_family(BaseModelParams(path=str(path), resolution=32))) for path in (tiny_sdxl, tiny_sd)]
    assert found == [
        {"architecture": "other", "prediction_type": "v_prediction"},
        {"architecture": "other", "prediction_type": "epsilon"},
    ]


def test_no_two_rows_say_the_same():
    assert len({row.name for row in ARCHITECTURES}) == len(ARCHITECTURES)
