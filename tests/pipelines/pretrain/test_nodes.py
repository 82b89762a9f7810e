"""What the report on a base is asked about."""

import json

import pytest

from b4m_pipeline.pipelines.pretrain import nodes
from b4m_pipeline.pretrain import corpus
from b4m_pipeline.pretrain.corpus import CorpusError
from b4m_pipeline.pretrain.params import FurtherParams, PretrainParams
from tests.test_conf import load


def test_a_base_is_judged_on_the_contents_that_it_was_trained_on(tmp_path, monkeypatch) -> None:
    params = PretrainParams(**load("test")["pretrain"])
    further = FurtherParams(steps=1, peak=0.7, known_weight=0.6, contents=["cat-face", "owl"])
    params = params.model_copy(update={"output": str(tmp_path), "further": further})
    monkeypatch.setattr(corpus, "build", lambda **options: options["contents"])
    own = params.corpus.contents
    with pytest.raises(CorpusError, match="run the pretrain pipeline first"):
        nodes.render_known_corpus(params)
    trainings = [{"contents": own}, {"contents": ["cat face"]}]
    (tmp_path / "training.json").write_text(json.dumps(trainings[:1]))
    assert nodes.render_known_corpus(params) == own
    (tmp_path / "training.json").write_text(json.dumps(trainings))
    assert nodes.render_known_corpus(params) == [*own, "cat-face"]
    assert nodes.render_wider_corpus(params) == [*own, "cat-face", "owl"]
