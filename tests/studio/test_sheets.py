"""Evaluations as a table, and pictures of runs."""

import io

import mlflow
import pytest
from PIL import Image

from b4m_pipeline.evaluation.table import MEASURES
from b4m_pipeline.studio import sheets


def test_every_measure_has_its_meaning() -> None:
    assert set(sheets.MEANINGS) == set(MEASURES)


def test_an_evaluated_run_and_one_with_a_composed_sheet_are_listed(registry) -> None:
    with mlflow.start_run(run_name="compose") as composed:
        mlflow.log_image(Image.new("RGB", (8, 8)), artifact_file="pictures/composed.png")
    with mlflow.start_run(run_name="nothing to see"):
        mlflow.log_metric("loss", 1.0)
    listed = {each["run"]: (each["title"], each["measured"]) for each in sheets.evaluations()}
    assert listed == {registry.run: ("cup + ink", True), composed.info.run_id: ("compose", False)}


def test_a_sheet_has_a_row_for_each_system_and_both_judges(registry) -> None:
    sheet = sheets.sheet(registry.run)
    assert [row["system"] for row in sheet["rows"]] == ["base", "halves joined", "made"]
    assert [measure["name"] for measure in sheet["measures"]] == ["kept", "content_clip"]
    assert sheet["rows"][2]["figures"] == {"kept": 0.5}
    assert "pictures/samples_made_composition.png" in sheet["pictures"]
    assert {version["kind"] for version in sheet["versions"]} == {"content", "style", "make"}


def test_pictures_come_as_they_are(registry) -> None:
    data = sheets.picture(registry.run, "pictures/samples_made_composition.png")
    assert Image.open(io.BytesIO(data)).size == (96, 32)


@pytest.mark.parametrize(
    ("run", "path"),
    [
        ("../x", "pictures/a.png"),
        ("0" * 32, "pictures/a.png"),
        (None, "pictures/../../../mlflow.db"),
        (None, "pictures/../a.png"),
        (None, "model/weights.safetensors"),
        (None, "pictures/missing.png"),
    ],
)
def test_nothing_else_is_given_out(registry, run, path) -> None:
    with pytest.raises(sheets.SheetError):
        sheets.picture(run or registry.run, path)
