"""The evaluation as a pipeline: pictures, figures and the sheet of one made adapter."""

import pytest

from b4m_pipeline.evaluation.evaluate import EvaluationError
from b4m_pipeline.evaluation.params import EvaluationParams
from b4m_pipeline.evaluation.samples import BASE, CONTENT, JOINED, MADE, STYLE
from b4m_pipeline.pipelines.evaluation import create_pipeline, nodes
from b4m_pipeline.training.params import MakeParams
from tests.conftest import PLAIN_EVALUATION, captioning_params, train_make
from tests.pipelines.helpers import run
from tests.training.helpers import MAKE, frame

PARAMS = EvaluationParams(
    prompts=["{article} {content} {noun} in {style} style"],
    content_prompt="{article} {content} {noun}",
    style_prompt="a house {noun} in {style} style",
    samples=2,
    steps=1,
    **PLAIN_EVALUATION,
)


@pytest.fixture(scope="module")
def made(tiny_joined, tiny_training_set, tiny_base):
    return train_make(tiny_joined, tiny_training_set, tiny_base, frame(), MakeParams(**MAKE | {"steps": 1}), 0)[0]


@pytest.fixture(scope="module")
def prepared(tiny_manifest):
    manifest, pictures = tiny_manifest
    return manifest.assign(caption_source="template"), pictures


def test_every_system_is_drawn_and_measured(tiny_halves, tiny_joined, made, prepared, tiny_base):
    manifest, pictures = prepared
    catalog = run(
        create_pipeline(),
        content_adapter=tiny_halves[0],
        style_adapter=tiny_halves[1],
        reconstructed_adapter=tiny_joined,
        made_adapter=made,
        manifest=manifest,
        pictures=pictures,
        params_base_model=tiny_base,
        params_captioning=captioning_params(),
        params_evaluation=PARAMS,
        params_seed=3,
    )
    samples, summary = catalog.load("samples"), catalog.load("evaluation_summary")
    assert set(samples["system"]) == {BASE, CONTENT, STYLE, JOINED, MADE}
    assert set(catalog.load("sample_pictures")) == set(samples["picture"])
    assert len(catalog.load("measured_samples")) == len(samples)
    assert set(summary["system"]) == set(samples["system"]) and summary["mean"].between(-1, 1).all()
    assert [len(catalog.load("references")[kind]) for kind in ("content", "style", "truth")] == [3, 3, 0]
    assert catalog.load("contact_sheet").width > 100


def test_pictures_of_another_concept_are_no_references(made, prepared, tiny_base):
    manifest, pictures = prepared
    strangers = manifest.replace({"concept": {"ink": "oil paint"}})
    with pytest.raises(EvaluationError, match=r"pictures of the style are of \['oil paint'\], the adapter is of 'ink'"):
        nodes.collect_references(strangers, pictures, made, tiny_base, PARAMS)


def test_looks_and_further_captions_are_no_references(made, prepared, tiny_base):
    manifest, pictures = prepared
    more = manifest.copy()
    more.loc[[0, 1], "caption_source"] = ["look", "variant"]
    assert len(nodes.collect_references(more, pictures, made, tiny_base, PARAMS)["content"]) == 1
