"""What a method made of a pair, on disk; figures that know what the style's pictures show."""

import pandas as pd
import pytest

from b4m_pipeline.benchmark.results import RECORD, References, Result, load_result, save_result, slug
from b4m_pipeline.evaluation.samples import known_requests
from tests.benchmark.helpers import EVALUATION, disc, square


def test_half_written_results_are_done_again(references, tmp_path):
    result = Result("cup-ink", "base", pd.DataFrame({"content": [0.5]}), {"a": square((1, 2, 3))}, 1.0)
    save_result(result, tmp_path, "f")
    assert load_result(tmp_path, "f").figures() == {"content": 0.5}
    assert load_result(tmp_path, "g") is None
    (tmp_path / "0.png").write_bytes(b"")
    assert load_result(tmp_path, "f") is None
    (tmp_path / RECORD).write_text("{")
    assert load_result(tmp_path, "f") is None


def test_drawings_of_known_things_count_in_the_shares_and_have_no_rows(references):
    things = ["a disc toy", "a square toy"]
    style = [disc((0, 90, 0), 3), square((0, 90, 0), 3)]
    drawings = [disc((200, 0, 0)), disc((0, 0, 200)), square((200, 0, 0)), square((0, 0, 200))]
    known = dict(zip(known_requests(things, 6, 0), drawings, strict=True))
    samples = pd.DataFrame([("x", "ours", "composition", "p", "p")], columns=["picture", "system", "kind", "prompt", "plain"])

    def measured(own: References) -> pd.DataFrame:
        return own.measure(samples, {"x": square((0, 90, 0), 3)}, [], EVALUATION)

    plain, informed = (measured(References(references.content, style, [], *more)) for more in ((), (things, known)))
    assert plain["picture"].tolist() == informed["picture"].tolist() == ["x"]
    assert informed["style_kept"][0] == pytest.approx(plain["style_kept"][0], abs=1e-5)
    assert informed["content_kept"][0] != pytest.approx(plain["content_kept"][0], abs=1e-3)


def test_a_methods_folder_is_called_as_it_is() -> None:
    assert slug("ours, split 0.25") == "ours-split-0.25" and slug("K-LoRA") == "k-lora"
