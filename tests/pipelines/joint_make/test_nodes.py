"""The joint fine-tuning as a pipeline."""

import torch

from b4m_pipeline.pipelines.joint_make import create_pipeline
from b4m_pipeline.training.checkpoint_files import finished_checkpoints
from b4m_pipeline.training.params import MakeParams
from tests.conftest import captioning_params, ingestion_params
from tests.evaluation.helpers import PARAMS
from tests.pipelines.helpers import run
from tests.training.helpers import MAKE, frame


def test_a_joined_adapter_becomes_a_made_one_with_its_curve(tiny_joined, tiny_training_set, tiny_base, tmp_path):
    catalog = run(
        create_pipeline(),
        reconstructed_adapter=tiny_joined,
        training_set=tiny_training_set,
        manifest=tiny_training_set.table,
        pictures={},
        params_base_model=tiny_base,
        params_ingestion=ingestion_params(),
        params_captioning=captioning_params(),
        params_encoding_cache=None,
        params_frame=frame(),
        params_make=MakeParams(**MAKE | {"steps": 2}),
        params_evaluation=PARAMS,
        params_seed=0,
        params_checkpoints=str(tmp_path),
        params_reuse=False,
    )
    made, curve = catalog.load("made_adapter"), catalog.load("make_loss_curve")
    assert made.metadata["kind"] == "made" and made.modules() == tiny_joined.modules()
    assert any(not torch.equal(made.tensors[key], value) for key, value in tiny_joined.tensors.items())
    assert curve["step"].tolist() == [0, 1] and curve["loss_make"].gt(0).all()
    assert len(finished_checkpoints(tmp_path, "joint_make")) == 1  # kept until the adapter is stored
