"""Parameters of the embedded base."""

import pytest
from pydantic import ValidationError

from b4m_pipeline.pretrain.params import CorpusParams, FurtherParams, PretrainParams, VaeParams, recipe_of
from tests.pretrain.helpers import PARAMS


def test_how_often_it_is_saved_and_how_it_is_run_decide_no_weights():
    own = PARAMS.denoiser
    assert recipe_of(own) == recipe_of(own.model_copy(update={"checkpoint_every": 7, "compile": True}))
    assert recipe_of(own) != recipe_of(own.model_copy(update={"ema": 0.5}))
    assert recipe_of(PARAMS.vae) == recipe_of(PARAMS.vae.model_copy(update={"checkpoint_every": 7}))


@pytest.mark.parametrize(
    ("schema", "values", "name"),
    [
        (VaeParams, {"steps": 0}, "steps"),
        (VaeParams, {"steps": 1, "texture_share": 1.5}, "texture_share"),
        (FurtherParams, {"steps": 1, "peak": 0}, "peak"),
        (FurtherParams, {"steps": 1, "known_weight": 0}, "known_weight"),
        (CorpusParams, PARAMS.corpus.model_dump() | {"unseen_share": 1}, "unseen_share"),
        (PretrainParams, PARAMS.model_dump() | {"size": 16}, "size"),
        (PretrainParams, PARAMS.model_dump() | {"sise": 64}, "sise"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_is_refused_by_name(schema, values, name):
    with pytest.raises(ValidationError, match=name):
        schema(**values)
