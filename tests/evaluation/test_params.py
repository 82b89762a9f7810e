"""Parameters of evaluation."""

import pytest
from pydantic import ValidationError

from b4m_pipeline.evaluation.params import EvaluationParams
from tests.conftest import PLAIN_EVALUATION

LEAST = {"prompts": ["{content} in {style}"], "content_prompt": "{content}", "style_prompt": "{style}"}
LEAST |= {"samples": 2, "steps": 2} | PLAIN_EVALUATION


def test_prompts_may_say_more_than_the_concepts():
    more = {"prompts": ["{article} {content} {noun} in {style} style, small"], "truth_path": "true/{content}-{style}"}
    assert EvaluationParams(**LEAST | more).truth_path == "true/{content}-{style}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "prompts"),
        ({"prompts": [*LEAST["prompts"], "{style}"]}, "prompts must hold {content}, {style} and may hold {noun}, {article}"),
        ({"content_prompt": "a cup"}, "content_prompt must hold {content}"),
        ({"style_prompt": "{style} {look}"}, "style_prompt"),
        ({"truth_path": "true/{noun}"}, "truth_path may hold"),
        ({"samples": 0}, "samples"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"device": "tpu"}, "device"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused_by_name(changes, message):
    with pytest.raises(ValidationError, match=message):
        EvaluationParams(**LEAST | changes)
