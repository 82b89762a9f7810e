"""What the training nodes send to MLflow beside what they return."""

import json

import mlflow

from b4m_pipeline.inputs.params import ConceptParams
from b4m_pipeline.method.combine import join_halves
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.pipelines.break_template import train_half
from b4m_pipeline.pipelines.joint_make.nodes import make_adapter
from b4m_pipeline.registry.adapters import register_adapter
from b4m_pipeline.training.params import BreakParams, MakeParams
from tests.conftest import PLAIN_TRAINING, TINY_FRAME

TRAIN = {"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "precision": "no", "device": "cpu"} | PLAIN_TRAINING
CONCEPTS = {
    "content": ConceptParams(name="cup", path="cup", token="snq", noun="toy"),
    "style": ConceptParams(name="ink", path="ink", token="w@z", noun="toy"),
}


def test_every_training_stage_reports_its_peak_memory(tracking, tiny_training_set, tiny_base, tmp_path):
    frame, checkpoints = FrameParams(**TINY_FRAME), str(tmp_path)
    params = BreakParams(**TRAIN, counterpart_batch_size=2, counterpart_learning_rate=1e-4, preservation_weight=0.0)
    with mlflow.start_run() as run:
        halves = {}
        for kind, concept in CONCEPTS.items():
            halves[kind], curve = train_half(
                tiny_training_set, tiny_base, frame, concept, params, 0, checkpoints, False, kind=kind
            )
            assert len(curve) == 2
        joined = join_halves(halves["content"], halves["style"], frame.content_side)
        guard = {"manifest": None, "pictures": {}, "captioning": None, "evaluation": None}  # none guards `keep: last`
        make = MakeParams(**TRAIN, keep="last")
        make_adapter(
            joined,
            tiny_training_set,
            base_model=tiny_base,
            frame=frame,
            make=make,
            seed=0,
            checkpoints=checkpoints,
            reuse=False,
            **guard,
        )
    metrics = tracking.get_run(run.info.run_id).data.metrics
    peaks = [metrics[f"{stage}.process_peak_memory_gib"] for stage in ("content_break", "style_break", "joint_make")]
    assert peaks[0] > 0 and peaks == sorted(peaks)  # of one process
    with mlflow.start_run():
        save_adapter(halves["content"], tmp_path / "half")
        register_adapter(tmp_path / "half")
        further = params.model_copy(update={"start_from": "models:/b4m-content-cup@candidate"})
        about = (tiny_training_set, tiny_base, frame, CONCEPTS["content"], further, 0, checkpoints, True)
        assert json.loads(train_half(*about, kind="content")[0].metadata["parents"]) == ["models:/b4m-content-cup/1"]
