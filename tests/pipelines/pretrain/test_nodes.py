"""What the report on a base is asked about."""

import json

import numpy as np
import pandas as pd
import pytest

from b4m_pipeline.pipelines.pretrain import nodes
from b4m_pipeline.pipelines.pretrain.pipeline import create_further_pipeline, create_pipeline
from b4m_pipeline.pretrain import contrastive, corpus, vae
from b4m_pipeline.pretrain.assemble import read_history
from b4m_pipeline.pretrain.corpus import CorpusError, Drawings
from b4m_pipeline.pretrain.params import FurtherParams, PretrainParams
from tests.pipelines.helpers import run
from tests.pretrain.helpers import PARAMS
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


@pytest.fixture
def drawings() -> Drawings:
    """Noise of three contents by two hands; the ring is held out of the denoiser, the last hand of everything."""
    rng = np.random.default_rng(0)
    names = [(content, hand) for content in ("square", "cross", "ring") for hand in ("red", "blue", "unseen")]
    split = {"ring": "held_out_content", "unseen": "held_out_hand"}
    rows = [(content, hand, hand, split.get(hand, split.get(content, "train")), "shape", "CC0") for content, hand in names]
    rgba = rng.integers(0, 256, (len(rows), 32, 32, 4), np.uint8)
    rgba[:, :4, :, 3] = 0
    return Drawings(rgba, pd.DataFrame(rows, columns=["content", "hand", "style", "split", "keywords", "licence"]))


def test_each_part_is_trained_on_what_it_may_see_and_the_base_goes_on(drawings, tmp_path, monkeypatch) -> None:
    folders = {name: str(tmp_path / name) for name in ("output", "clip_output", "checkpoints")}
    params = PARAMS.model_copy(update=folders | {"further": FurtherParams(steps=2, peak=0.6, known_weight=0.6, contents=[])})
    seen = {}
    for module, name in ((vae, "train_vae"), (contrastive, "train_clip")):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda own, *rest, name=name, original=original: seen.update({name: own}) or original(own, *rest)
        )
    training = create_pipeline().only_nodes("train_tokenizer", "train_vae", "train_base", "train_clip")
    run(training, drawings=drawings, params_pretrain=params)
    assert set(seen["train_vae"].table["split"]) == {"train"}
    assert set(seen["train_clip"].table["split"]) == {"train", "held_out_content"}  # it judges what the denoiser never saw
    (first,) = read_history(tmp_path / "output")
    assert first["contents"] == ["cross", "square"] and first["hands"] == ["blue", "red"] and first["steps"] == 4
    assert nodes.find_base(params) == (folders["output"], folders["clip_output"])
    further = create_further_pipeline().only_nodes("train_base_further")
    run(further, wider_drawings=drawings, params_pretrain=params)
    trainings = read_history(tmp_path / "output")
    assert trainings[0] == first and trainings[1]["steps"] == 2 and len(trainings) == 2
    with pytest.raises(CorpusError, match=r"pretrain\.further is null"):
        nodes.train_base_further(drawings, params.model_copy(update={"further": None}))


def test_a_base_that_is_not_there_is_named_before_it_is_judged(tmp_path) -> None:
    params = PARAMS.model_copy(update={"output": str(tmp_path / "base"), "clip_output": str(tmp_path / "clip")})
    for name, marker in (("base", "model_index.json"), ("clip", "config.json")):
        with pytest.raises(CorpusError, match=f"No model at .*{name}: run the pretrain pipeline first"):
            nodes.find_base(params)
        (tmp_path / name).mkdir()
        (tmp_path / name / marker).touch()
    assert nodes.find_base(params) == (params.output, params.clip_output)


def test_all_figures_are_in_one_table() -> None:
    parts, prompted = pd.DataFrame({"what": ["VAE"], "psnr": [20.12345]}), pd.DataFrame({"what": ["known"], "right": [0.5]})
    table = nodes.collect_figures(parts, prompted, pd.DataFrame({"what": ["taught"], "right": [0.25]}))
    assert table["what"].tolist() == ["known", "taught", "VAE"] and table["psnr"].tolist()[2] == 20.1234
