"""The rehearsal of a base model's full size, here with a tiny one."""

import numpy as np
import pytest
import yaml
from PIL import Image

from tools import rehearse

TINY = {
    "frame": {"rank": 4},
    "content_break": {"batch_size": 1, "counterpart_batch_size": 1},
    "style_break": {"batch_size": 1, "counterpart_batch_size": 1},
    "ingestion": {"buckets": {"step": 8, "max_ratio": 2.0}},
}


@pytest.mark.slow
def test_every_stage_of_a_tiny_model_is_run_and_measured(tiny_sdxl, tmp_path) -> None:
    project = rehearse.make_project(tmp_path / "project", "sdxl", {"path": str(tiny_sdxl), "resolution": 32}, TINY)
    stages = [rehearse.run_stage(project, "sdxl", name) for name in rehearse.COMMANDS]
    assert all(stage.seconds > 1 and 0.2 < stage.peak_gib < 4 for stage in stages)  # Python and torch alone take more
    assert (project / "exported.safetensors").stat().st_size > 1000
    assert rehearse.table(stages).count("\n") == len(stages) + 1


def test_a_project_is_the_environment_with_another_model_and_little_work(tmp_path) -> None:
    (tmp_path / "project/old").mkdir(parents=True)
    project = rehearse.make_project(tmp_path / "project", "sdxl", {"path": "somewhere", "resolution": 64}, TINY)
    given = yaml.safe_load((rehearse.ROOT / "conf/sdxl/parameters.yml").read_text(encoding="utf-8"))
    made = yaml.safe_load((project / "conf/sdxl/parameters.yml").read_text(encoding="utf-8"))
    assert made["base_model"]["path"] == "somewhere" and made["base_model"]["variant"] is None
    assert made["content_break"]["steps"] == 2 and made["frame"]["rank"] == 4
    assert made["content_break"]["learning_rate"] == given["content_break"]["learning_rate"]  # the rest stays
    assert made["frame"]["targets"] == given["frame"]["targets"]
    assert not (project / "old").exists() and not (project / "conf/local").exists()
    photographs = [np.asarray(Image.open(file)) for file in sorted((project / "data/01_raw/own").rglob("*.jpg"))]
    assert len(photographs) == 6 and len({picture.tobytes() for picture in photographs}) == 6


def test_a_stage_that_fails_says_why(tmp_path) -> None:
    project = rehearse.make_project(tmp_path / "project", "sdxl", {"path": "somewhere", "resolution": 64}, {})
    (project / "pyproject.toml").write_text("[tool.other]\n")
    with pytest.raises(RuntimeError, match="(?s)ingestion failed with exit code 2:.*No such command 'run'"):
        rehearse.run_stage(project, "sdxl", "ingestion")
