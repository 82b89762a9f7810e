"""What an earlier run left for another content, style or frame is refused."""

import json

import pandas as pd
import pytest
from PIL import Image

from b4m_pipeline.common.provenance import file_digest
from b4m_pipeline.inputs.params import ConceptParams
from b4m_pipeline.inputs.staleness import StaleInputError, require_adapter, require_table
from b4m_pipeline.method.adapter import Adapter
from b4m_pipeline.method.params import FrameParams
from tests.conftest import TINY_FRAME

FRAME = FrameParams(**TINY_FRAME)


@pytest.fixture
def concepts(tmp_path) -> dict[str, ConceptParams]:
    own = {"content": ("cup", "snq"), "style": ("ink", "w@z")}
    for number, (name, _) in enumerate(own.values()):
        (tmp_path / name / "more").mkdir(parents=True)
        for index, place in enumerate(("0.png", "more/1.png")):
            Image.new("RGB", (4, 4), (90 * number, 90 * index, 0)).save(tmp_path / name / place)
    return {kind: ConceptParams(path=str(tmp_path / name), token=token) for kind, (name, token) in own.items()}


@pytest.fixture
def manifest(concepts, tmp_path) -> pd.DataFrame:
    rows = [
        {"role": role, "concept": concept.name, "token": concept.token, "sha256": file_digest(file)}
        for role, concept in concepts.items()
        for file in sorted((tmp_path / concept.name).rglob("*.png"))
    ]
    return pd.DataFrame([*rows, {"role": "counterpart_style", "concept": "oil", "token": "qrv", "sha256": "0"}])


def adapter(kind: str, manifest: pd.DataFrame) -> Adapter:
    of_both = {"content_name": "cup", "content_token": "snq", "style_name": "ink", "style_token": "w@z"}
    own = {"content": {"name": "cup", "token": "snq"}, "style": {"name": "ink", "token": "w@z"}}.get(kind, of_both)
    shown = {role: {"sha256": [sha[:12] for sha in rows["sha256"]]} for role, rows in manifest.groupby("role")}
    pictures = {} if kind == "reconstructed" else {"pictures": json.dumps(shown)}
    params = json.dumps({"frame": FRAME.model_dump() | {"a field of a later version": 1}})
    return Adapter({}, {"kind": kind, "params": params} | own | pictures, {})


KINDS = ("content", "style", "reconstructed", "made")


def other(concepts, **changes) -> dict[str, ConceptParams]:
    return {kind: concept.model_copy(update=changes) if kind == "style" else concept for kind, concept in concepts.items()}


def test_what_was_made_for_this_run_passes(concepts, manifest, tmp_path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "ink/added since.png")
    require_table("manifest", manifest, concepts)
    for kind in KINDS:
        require_adapter(kind, adapter(kind, manifest), concepts, FRAME)


@pytest.mark.parametrize("changes", [{"name": "oil"}, {"token": "ohwx"}])
def test_another_concept_is_refused_by_name(concepts, manifest, changes) -> None:
    wanted = other(concepts, **changes)
    name, token = changes.get("name", "ink"), changes.get("token", "w@z")
    told = rf"its style is 'ink' \(w@z\), and this run's is '{name}' \({token}\). Run the pipelines that make it again"
    with pytest.raises(StaleInputError, match=f"manifest: {told}"):
        require_table("manifest", manifest, wanted)
    for kind in KINDS[1:]:
        with pytest.raises(StaleInputError, match=f"{kind}_adapter: {told}"):
            require_adapter(f"{kind}_adapter", adapter(kind, manifest), wanted, FRAME)
    require_adapter("content_adapter", adapter("content", manifest), wanted, FRAME)


def test_other_pictures_of_the_same_name_are_refused(concepts, manifest, tmp_path) -> None:
    (tmp_path / "ink/0.png").write_bytes(b"painted over")
    told = "was made from 2 pictures of the style, and 1 of them are not in .*ink as they were"
    with pytest.raises(StaleInputError, match=f"training_set {told}"):
        require_table("training_set", manifest, concepts)
    with pytest.raises(StaleInputError, match=f"made_adapter {told}"):
        require_adapter("made_adapter", adapter("made", manifest), concepts, FRAME)
    with pytest.raises(StaleInputError, match="2 of them"):
        require_table("training_set", manifest, other(concepts, path=str(tmp_path / "nowhere")))


def test_another_frame_is_refused_by_its_first_difference(concepts, manifest) -> None:
    frame = FrameParams(**TINY_FRAME | {"rank": 8, "alpha": 8.0})
    with pytest.raises(StaleInputError, match=r"content_adapter was made with frame\.alpha 4\.0, and this run has 8\.0"):
        require_adapter("content_adapter", adapter("content", manifest), concepts, frame)


def test_a_role_that_is_missing_is_said(concepts, manifest) -> None:
    with pytest.raises(StaleInputError, match="its content is not there"):
        require_table("manifest", manifest[manifest["role"] != "content"], concepts)
