"""Merges measured beside a made adapter."""

import time

import pytest

from b4m_pipeline.studio import sheets
from b4m_pipeline.studio.merges import WAYS, Measurement, MergesError
from tests.studio.conftest import CONTENT, MADE


@pytest.fixture
def ingested(tiny_manifest):
    """What the catalog would load."""
    manifest, pictures = tiny_manifest
    return {"manifest": manifest.assign(caption_source="template"), "pictures": pictures}


def ended(measurement: Measurement) -> dict[str, str]:
    for _ in range(1200):
        if measurement.state != "running":
            return measurement.about()
        time.sleep(0.05)
    raise AssertionError(measurement.about())


def test_the_result_is_a_run_with_a_row_for_each_way(canvas, ingested) -> None:
    measurement = Measurement(canvas, ingested.__getitem__)
    measurement.start(MADE)
    with pytest.raises(MergesError, match="already"):
        measurement.start(MADE)
    told = ended(measurement)
    assert told["state"] == "done", told
    sheet = sheets.sheet(told["run"])
    assert {row["system"] for row in sheet["rows"]} == {"halves joined", "made", *WAYS}
    assert all({"kept", "content", "style"} <= set(row["figures"]) for row in sheet["rows"])
    assert sheet["pictures"] == ["pictures/composed.png"]


def test_other_pictures_or_none_are_refused(canvas, ingested) -> None:
    def missing(name: str) -> None:
        raise FileNotFoundError(name)

    with pytest.raises(MergesError, match="run ingestion"):
        Measurement(canvas, missing).start(MADE)
    others = ingested | {"manifest": ingested["manifest"].replace({"concept": {"cup": "hat"}})}
    with pytest.raises(MergesError, match="ingested last are of hat, not cup"):
        Measurement(canvas, others.__getitem__).start(MADE)
    with pytest.raises(MergesError, match="does not say which"):
        Measurement(canvas, ingested.__getitem__).start(CONTENT)


def test_a_failure_is_said(canvas, ingested, monkeypatch) -> None:
    monkeypatch.setattr("b4m_pipeline.studio.merges.compose", lambda *_: (_ for _ in ()).throw(ValueError("no disk")))
    measurement = Measurement(canvas, ingested.__getitem__)
    measurement.start(MADE)
    told = ended(measurement)
    assert told["state"] == "failed" and told["message"]
