"""Environments of real base models from end to end, on tiny random models that are saved and loaded as the real ones are."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, DiffusionPipeline
from mlflow.tracking import MlflowClient
from PIL import Image

from tests import warm
from tests.diffusion.families.original import as_single_file
from tests.test_readme import environment, project  # noqa: F401 (project is a fixture)
from tests.test_startup import ROOT

SHORT = {"steps": 2, "batch_size": 2, "precision": "auto"}


def tiny(name: str, folder: Path, root: Path) -> dict:
    """The environment's base_model with a model of this machine: what the environment names besides (variant, vae) stays."""
    given = yaml.safe_load((ROOT / f"conf/{name}/parameters.yml").read_text())["base_model"]
    pipeline = DiffusionPipeline.from_pretrained(folder)
    own = {"path": str(root / "model"), "resolution": 32}
    if "vae" in given:
        AutoencoderKL.from_pretrained(folder, subfolder="vae").save_pretrained(root / "vae")
        own["vae"] = str(root / "vae")
    if "variant" in given:
        pipeline.to(torch.float16)
    pipeline.save_pretrained(root / "model", variant=given.get("variant"))
    if name == "sd15":  # once from one file, as model sites share it
        own |= {
            "path": str(as_single_file(folder, root / "model.safetensors")),
            "config": str(root / "model"),
            "revision": None,
        }
        for weights in (root / "model").rglob("*.safetensors"):
            weights.unlink()
    return given | own


MODELS = {"sd35": "sd3", "flux": "flux", "flux2": "flux2", "zimage": "z_image", "qwen": "qwen_image"}
"""Environments of base models of rectified flow, and their tiny ones."""


@pytest.mark.parametrize(
    "name",
    ["sdxl", "zimage", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sd15", "sd35", "flux", "flux2", "qwen"))],
)
def test_break_make_runs_in_the_environment(name, tiny_sdxl, tiny_sd, tiny_flow, project, tmp_path):  # noqa: F811
    folder = tiny_flow(MODELS[name]).path if name in MODELS else {"sdxl": tiny_sdxl, "sd15": tiny_sd}[name]
    conf = project / f"conf/{name}/parameters.yml"
    before = conf.read_text()
    parameters = yaml.safe_load(before)
    parameters["base_model"] = tiny(name, Path(folder), tmp_path)
    parameters["frame"] |= {"rank": 4}
    parameters["counterparts"]["drawn"] |= {"images": 1, "steps": 1, "resolution": 32, "folder": str(tmp_path / "drawn")}
    for stage in ("content_break", "style_break"):
        parameters[stage] |= SHORT | {"counterpart_batch_size": 1}
    parameters["make"] |= SHORT | {"rehearsal": {"images": 2, "steps": 2, "batch_size": 2}}
    parameters["ingestion"]["buckets"] |= {"step": 8}
    parameters["captioning"] |= {"vision_language_model": None}  # of the Hub, as the judge is
    parameters["evaluation"] |= {"clip": None, "samples": 1, "steps": 2, "batch_size": 2}
    store = tmp_path / "store.db"
    own = "content.path=data/01_raw/own/teapot,content.noun=teapot,style.path=data/01_raw/own/ink"
    command = ["kedro", "run", "--pipelines=break_make", f"--env={name}", f"--params={own}"]
    variables = environment(project) | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}"}
    del variables["KEDRO_ENV"]
    try:
        conf.write_text(yaml.safe_dump(parameters))
        done = warm.run(command, project, variables)
    finally:
        conf.write_text(before)
        shutil.rmtree(project / "mlruns", ignore_errors=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "drawn").glob("drawn-*/000.png"))) == 6
    client = MlflowClient(f"sqlite:///{store}")
    version = client.get_model_version_by_alias("b4m-make-teapot-ink", "trial")
    assert version.tags["base_model"] == parameters["base_model"]["path"] and version.tags["resolution"] == "32"
    assert version.tags.get("base_config") == parameters["base_model"].get("config")
    assert version.tags.get("base_vae") == parameters["base_model"].get("vae")
    assert version.tags.get("base_variant") == parameters["base_model"].get("variant")
    assert ("base_pipeline" in version.tags) == (name in MODELS)
    assert Image.open(project / "data/08_reporting/contact_sheet.png").width > 400
