"""What is checked before a run starts; the rest of it is in test_hooks.py, by whole runs."""

import pytest

from b4m_pipeline.diffusion.families import BaseModelError, ObjectiveError
from b4m_pipeline.inputs.captions import CaptioningError
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.method.frame import TargetError
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.prerequisites import (
    WrongParameterError,
    check_base_model,
    check_buckets,
    check_captioner,
    check_halves,
    check_objectives,
    check_preservation,
    check_starts,
)  # fmt: skip
from b4m_pipeline.training.params import BreakParams
from b4m_pipeline.training.starts import StartError
from tests.conftest import PLAIN_BREAK, TINY_FRAME, ingestion_params, preservation_params

BREAK = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3, "counterpart_batch_size": 1, "counterpart_learning_rate": 1e-4}
BREAK |= PLAIN_BREAK


def test_preservation_needs_words_only_where_it_weighs_something():
    plain, quiet = BreakParams(**BREAK), BreakParams(**BREAK | {"preservation_weight": 0.1})
    parameters = {"content_break": plain, "style_break": quiet, "preservation": preservation_params(contents=[], styles=[])}
    assert not check_preservation(parameters, ["content_break"]) and not check_preservation(parameters, [])
    with pytest.raises(WrongParameterError, match=r"style_break\.preservation_weight needs words"):
        check_preservation(parameters, ["content_break", "style_break"])
    parameters["preservation"] = preservation_params(contents=["cat"], styles=["oil"])
    assert check_preservation(parameters, ["content_break", "style_break"])


def test_breaks_go_on_from_halves_of_their_own_frame(tiny_halves, tiny_base, tmp_path):
    save_adapter(tiny_halves[0], tmp_path)
    given = BreakParams(**BREAK | {"start_from": str(tmp_path)})
    parameters = {"content_break": given, "style_break": given, "base_model": tiny_base, "frame": FrameParams(**TINY_FRAME)}
    check_starts(parameters, ["content_break"])
    with pytest.raises(StartError, match=r"^style_break\.start_from: cup is a content adapter"):
        check_starts(parameters, ["content_break", "style_break"])
    parameters["style_break"] = BreakParams(**BREAK)
    check_starts(parameters, ["content_break", "style_break"])


def test_make_goes_on_with_halves_alone():
    check_halves(["sum", "halves"])
    with pytest.raises(WrongParameterError, match=r"compose\.methods is \['sum'\].*add halves"):
        check_halves(["sum"])


def test_preservation_needs_a_target_that_reads_the_prompt(tiny_base):
    frame = FrameParams(**TINY_FRAME | {"targets": ["to_out.0"]})
    check_base_model(tiny_base, frame)
    with pytest.raises(TargetError, match="reads the prompt alone"):
        check_base_model(tiny_base, frame, preserving=True)


def test_a_captioner_that_is_not_there_is_said_before_a_run(tmp_path):
    check_captioner(None)
    with pytest.raises(CaptioningError, match=r"captioning\.vision_language_model: .*no captioner"):
        check_captioner(str(tmp_path))


def test_preservation_without_a_layer_for_it_is_refused_for_transformers_too(tiny_flow):
    attention = FrameParams(**TINY_FRAME | {"targets": ["attn.to_q", "attn.to_k"]})
    with pytest.raises(TargetError, match=r"preservation_weight needs a target .* none of \['context_embedder'\]"):
        check_base_model(tiny_flow("flux2"), attention, preserving=True)
    check_base_model(tiny_flow("z_image"), FrameParams(**TINY_FRAME | {"targets": ["to_q"]}), preserving=True)


def test_sides_that_the_base_model_cannot_have_are_refused(tiny_flow):
    base = tiny_flow("flux2")
    check_buckets(base, ingestion_params(buckets=None))
    check_buckets(base, ingestion_params(buckets={"step": 16}))
    with pytest.raises(WrongParameterError, match=r"ingestion\.buckets\.step is 12, .* multiples of 8 pixels"):
        check_buckets(base, ingestion_params(buckets={"step": 12}))
    with pytest.raises(BaseModelError, match=r"base_model\.resolution is 36"):
        check_base_model(base.model_copy(update={"resolution": 36}), None)


def test_parameters_that_the_objective_has_not_are_named(tiny_flow):
    stages = {"content_break": BreakParams(**BREAK), "style_break": BreakParams(**BREAK | {"min_snr_gamma": 5.0})}
    parameters = stages | {"base_model": tiny_flow("z_image")}
    check_objectives(parameters, ["content_break"])
    with pytest.raises(ObjectiveError, match=r"style_break\.min_snr_gamma"):
        check_objectives(parameters, ["content_break", "style_break"])
