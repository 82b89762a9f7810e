"""Two halves from the registry or from folders become one adapter."""

import pytest
import torch

from b4m_pipeline.library.params import ComposeParams
from b4m_pipeline.method.adapter import URI_KEY, AdapterError
from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.method.frame import FrameMismatchError
from b4m_pipeline.method.params import FrameParams
from b4m_pipeline.pipelines.compose.nodes import fetch_and_join
from b4m_pipeline.registry.adapters import RegistrationError, register_adapter
from tests.conftest import TINY_FRAME, train_make
from tests.training.helpers import train_half

FRAME = FrameParams(**TINY_FRAME)


@pytest.fixture(scope="module")
def folders(tiny_training_set, tiny_base, tmp_path_factory):
    root = tmp_path_factory.mktemp("halves")
    for kind in ("content", "style"):
        save_adapter(train_half(kind, tiny_training_set, tiny_base)[0], root / kind)
    save_adapter(
        train_half("style", tiny_training_set, tiny_base, FrameParams(**TINY_FRAME | {"seed": 9}))[0], root / "foreign"
    )
    return root


def test_halves_of_the_registry_are_joined_and_remembered(folders, tracking):
    for kind in ("content", "style"):
        register_adapter(folders / kind)
    joined = fetch_and_join(ComposeParams(content="models:/b4m-content-cup@candidate", style="models:/b4m-style-ink/1"), FRAME)
    from_folders = fetch_and_join(ComposeParams(content=str(folders / "content"), style=str(folders / "style")), FRAME)
    assert all(torch.equal(tensor, from_folders.tensors[key]) for key, tensor in joined.tensors.items())
    assert joined.metadata["parents"] == '["models:/b4m-content-cup/1", "models:/b4m-style-ink/1"]'
    assert joined.metadata["name"] == "cup-ink" and URI_KEY not in joined.metadata


def test_the_halves_say_whose_side_is_whose(folders):
    """The run's own parameter may differ by now: the content's half knows which factor it is."""
    other = FRAME.model_copy(update={"content_side": "lora_B"})
    joined = fetch_and_join(ComposeParams(content=str(folders / "content"), style=str(folders / "style")), other)
    assert joined.metadata["content_side"] == "lora_A"


def test_what_does_not_belong_together_is_refused(folders, tracking):
    with pytest.raises(FrameMismatchError, match="two frames"):
        fetch_and_join(ComposeParams(content=str(folders / "content"), style=str(folders / "foreign")), FRAME)
    with pytest.raises(FrameMismatchError, match="no content half"):
        fetch_and_join(ComposeParams(content=str(folders / "style"), style=str(folders / "content")), FRAME)
    with pytest.raises(RegistrationError, match="b4m-content-nobody@candidate"):
        fetch_and_join(ComposeParams(content="models:/b4m-content-nobody@candidate", style=str(folders / "style")), FRAME)
    with pytest.raises(AdapterError, match="No adapter"):
        fetch_and_join(ComposeParams(content=str(folders / "none"), style=str(folders / "style")), FRAME)


def test_a_joined_adapter_can_be_made(folders, tiny_training_set, tiny_base):
    from b4m_pipeline.training.params import MakeParams
    from tests.training.helpers import MAKE

    joined = fetch_and_join(ComposeParams(content=str(folders / "content"), style=str(folders / "style")), FRAME)
    made, _ = train_make(joined, tiny_training_set, tiny_base, FRAME, MakeParams(**MAKE), 0)
    assert made.metadata["name"] == "cup-ink"
