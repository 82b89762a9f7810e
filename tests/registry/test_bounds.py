"""The bounds of a request, and the words in which it is refused."""

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from b4m_pipeline.registry.bounds import MAX_WORK, Answer, PredictParams, prompts_of, require_work, shown


def test_prompts_are_those_of_a_column_in_one_row_or_several():
    assert prompts_of(pd.DataFrame({"prompt": ["a", "b"], "more": [1, 2]})) == ["a", "b"]
    assert prompts_of(pd.DataFrame({"prompt": [["a", "b"]]})) == ["a", "b"]
    assert prompts_of(pd.DataFrame({"other": [np.array(["ab", "c"])]})) == ["ab", "c"]
    assert prompts_of(pd.DataFrame({"prompt": [np.str_("ab")]})) == ["ab"]


@pytest.mark.parametrize(
    "cell", [None, float("nan"), 5, True, {"a": "b"}, [], [None], ["a", 5], b"a", "", " \n", np.int64(5), [["a"]]]
)
def test_what_is_no_text_is_no_prompt(cell):
    with pytest.raises(MlflowException, match=r"no text|1 to 32 prompts, got 0") as error:
        prompts_of(pd.DataFrame({"prompt": [cell]}))
    assert error.value.get_http_status_code() == 400 and "\n" not in error.value.message


def test_tables_without_prompts_and_objects_are_refused():
    for table in (pd.DataFrame(), pd.DataFrame({"prompt": {"a": "b"}})):
        with pytest.raises(MlflowException, match="no prompts|got an object"):
            prompts_of(table)


@pytest.mark.parametrize(
    ("prompts", "steps", "side", "taken"),
    [
        (32, 25, 64, True),
        (32, 1, 512, False),
        (1, 100, 128, True),
        (32, 100, 64, False),
        (1, 50, 256, True),
        (1, 99, 256, False),
    ],
)
def test_prompts_times_pixels_times_steps_are_bounded(prompts, steps, side, taken):
    params = PredictParams(num_inference_steps=steps, height=side, width=side)
    if taken:
        require_work(prompts, params, 64)
    else:
        with pytest.raises(MlflowException, match=f"{prompts} prompts of {side} x {side} .* at most {MAX_WORK}"):
            require_work(prompts, params, 64)


def test_only_the_beginning_of_a_value_is_shown():
    assert shown("short") == "'short'" and shown(5) == "5"
    assert len(shown("x" * 10_000)) < 70 and len(shown({"a": ["x" * 10_000]})) < 80 and "\n" not in shown("\n" * 100)


def test_an_answer_keeps_its_words():
    answer = Answer("one line", 1, 7)
    answer.message = f"Failed to predict data '...'. \nError: {answer.message}"
    assert answer.message == "one line" and '"one line"' in answer.serialize_as_json() and answer.retry_after == 7
