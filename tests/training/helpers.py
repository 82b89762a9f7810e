"""Parameters of trainings of a few steps on the tiny random SDXL."""

from b4m_pipeline.inputs.params import ConceptParams
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.training.params import BreakParams
from tests.conftest import PLAIN_BREAK, PLAIN_MAKE, TINY_FRAME
from tests.conftest import train_half as train_on

CONTENT = ConceptParams(name="cup", path="cup", token="snq", noun="toy")
STYLE = ConceptParams(name="ink", path="ink", token="w@z", noun="toy")
BREAK = {
    "steps": 4,
    "batch_size": 2,
    "learning_rate": 1e-2,
    "counterpart_batch_size": 2,
    "counterpart_learning_rate": 1e-3,
    "precision": "no",
    "checkpoint_every": 1,
} | PLAIN_BREAK
MAKE = {"steps": 3, "batch_size": 4, "learning_rate": 1e-2, "precision": "no", "checkpoint_every": 1} | PLAIN_MAKE


def frame(**changes) -> FrameParams:
    return FrameParams(**(TINY_FRAME | changes))


def train_half(kind, data, base, frame_params=None, seed=0, **changes):
    concept = CONTENT if kind == "content" else STYLE
    keywords = {k: changes.pop(k) for k in ("checkpoint", "log") if k in changes}
    params = BreakParams(**(BREAK | changes))
    return train_on(kind, data, base, frame_params or frame(), concept, params, seed, **keywords)
