"""Two LoRAs from the registry or from folders become one adapter, or several that are drawn side by side."""

import pytest
import torch

from b4m_pipeline.datasets.adapter import UNCHANGED
from b4m_pipeline.diffusion.params import GenerateParams
from b4m_pipeline.library.params import ComposeParams
from b4m_pipeline.method.adapter import URI_KEY, AdapterError
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.method.frame import FrameMismatchError
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.pipelines.compose import create_pipeline
from b4m_pipeline.registry.adapters import RegistrationError, register_adapter
from b4m_pipeline.training.params import MakeParams
from tests.conftest import TINY_FRAME, train_make
from tests.pipelines.helpers import run
from tests.training.helpers import MAKE, train_half

FRAME = FrameParams(**TINY_FRAME)
DRAWN = GenerateParams(adapter="x", prompts=None, images_per_prompt=2, steps=1)


@pytest.fixture(scope="module")
def folders(tiny_training_set, tiny_base, tmp_path_factory):
    root = tmp_path_factory.mktemp("halves")
    for kind in ("content", "style"):
        save_adapter(train_half(kind, tiny_training_set, tiny_base)[0], root / kind)
    other = FrameParams(**TINY_FRAME | {"seed": 9})
    save_adapter(train_half("style", tiny_training_set, tiny_base, other)[0], root / "foreign")
    return root


@pytest.fixture
def compose(tiny_base):
    def run_it(content, style, frame=FRAME, **changes):
        params = ComposeParams(content=str(content), style=str(style), **changes)
        return run(
            create_pipeline(), params_compose=params, params_frame=frame, params_base_model=tiny_base,
            params_make=MakeParams(**MAKE), params_generate=DRAWN, params_seed=0,
        )  # fmt: skip

    return run_it


def test_halves_of_the_registry_are_joined_and_remembered(folders, tracking, compose):
    for kind in ("content", "style"):
        register_adapter(folders / kind)
    catalog = compose("models:/b4m-content-cup@candidate", "models:/b4m-style-ink/1")
    joined = catalog.load("reconstructed_adapter")
    assert catalog.load("merged_adapters") == catalog.load("composed_sheets") == {}
    from_folders = compose(folders / "content", folders / "style").load("reconstructed_adapter")
    assert all(torch.equal(tensor, from_folders.tensors[key]) for key, tensor in joined.tensors.items())
    assert joined.metadata["parents"] == '["models:/b4m-content-cup/1", "models:/b4m-style-ink/1"]'
    assert joined.metadata["name"] == "cup-ink" and URI_KEY not in joined.metadata


def test_the_halves_say_whose_side_is_whose(folders, compose):
    """The run's own parameter may differ by now: the content's half knows which factor it is."""
    other = FRAME.model_copy(update={"content_side": "lora_B"})
    joined = compose(folders / "content", folders / "style", other).load("reconstructed_adapter")
    assert joined.metadata["content_side"] == "lora_A"


def test_what_does_not_belong_together_is_refused(folders, tracking, compose):
    with pytest.raises(FrameMismatchError, match="two frames"):
        compose(folders / "content", folders / "foreign")
    with pytest.raises(FrameMismatchError, match="no content half"):
        compose(folders / "style", folders / "content")
    with pytest.raises(RegistrationError, match="b4m-content-nobody@candidate"):
        compose("models:/b4m-content-nobody@candidate", folders / "style")
    with pytest.raises(AdapterError, match="No adapter"):
        compose(folders / "none", folders / "style")


def test_a_joined_adapter_can_be_made(folders, tiny_training_set, tiny_base, compose):
    joined = compose(folders / "content", folders / "style").load("reconstructed_adapter")
    made, _ = train_make(joined, tiny_training_set, tiny_base, FRAME, MakeParams(**MAKE), 0)
    assert made.metadata["name"] == "cup-ink"


def test_halves_of_two_frames_can_be_merged_and_the_joined_ones_on_disk_stay(folders, compose):
    catalog = compose(folders / "content", folders / "foreign", methods=["sum"])
    assert catalog.load("reconstructed_adapter") == UNCHANGED and catalog.load("composed_sheets") == {}
    assert list(catalog.load("merged_adapters")) == ["cup-ink/sum"]


def test_several_ways_are_drawn_on_one_sheet_and_kept_in_mlflow(folders, tracking, compose, monkeypatch):
    import mlflow

    painted = []
    monkeypatch.setattr(
        "b4m_pipeline.library.compose.paint_grid", lambda rows, **options: painted.append((rows, options)) or rows[0].images[0]
    )
    with mlflow.start_run() as active:
        catalog = compose(
            folders / "content", folders / "style", methods="halves sum", prompts=["a snq toy", "a toy in w@z style"]
        )
    ((rows, options),) = painted
    assert [row.title for row in rows] == ["cup", "ink", "halves", "sum"] and all(len(row.images) == 4 for row in rows)
    assert options["headings"] == ["a snq toy"] * 2 + ["a toy in w@z style"] * 2
    drawn = [row.images[0].tobytes() for row in rows]
    assert len({*drawn[:3]}) == 3
    assert list(catalog.load("composed_sheets")) == ["cup-ink"]
    assert [file.path for file in tracking.list_artifacts(active.info.run_id, "pictures")] == ["pictures/composed.png"]
    assert catalog.load("reconstructed_adapter").metadata["kind"] == "reconstructed"
    assert catalog.load("merged_adapters")["cup-ink/sum"].metadata["kind"] == "merged"
