"""Prompts in, pictures and a sheet of them out."""

import pytest

from b4m_pipeline.diffusion.params import GenerateParams
from b4m_pipeline.method.adapter import AdapterError
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.pipelines.generate import create_pipeline
from tests.pipelines.helpers import run

OWN = {"prompts": ["a snq toy", "a toy in w@z style"], "images_per_prompt": 2, "steps": 1}


def test_each_prompt_has_its_pictures_and_a_row(tiny_base, joined_adapter, tmp_path):
    save_adapter(joined_adapter, tmp_path)
    drawn = []
    for adapter in (None, str(tmp_path)):
        params = GenerateParams(**OWN, adapter=adapter)
        catalog = run(create_pipeline(), params_generate=params, params_base_model=tiny_base, params_seed=7)
        drawn.append(catalog.load("generated_pictures"))
        one = run(
            create_pipeline(),
            params_generate=params.model_copy(update={"prompts": OWN["prompts"][:1]}),
            params_base_model=tiny_base,
            params_seed=7,
        )
        assert catalog.load("generated_sheet").height > one.load("generated_sheet").height
    plain, adapted = drawn
    assert list(plain) == [f"{place}-{seed}" for place in ("000-a-snq-toy", "001-a-toy-in-w-z-style") for seed in (7, 8)]
    assert all(plain[key].tobytes() != picture.tobytes() for key, picture in adapted.items())


def test_an_adapter_that_is_not_there_is_named(tiny_base, tmp_path):
    params = GenerateParams(**OWN, adapter=str(tmp_path / "none"))
    with pytest.raises(AdapterError, match="none"):
        run(create_pipeline(), params_generate=params, params_base_model=tiny_base, params_seed=0)
