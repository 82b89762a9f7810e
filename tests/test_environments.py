"""Environments of real base models from end to end, on tiny random models that are saved and loaded as the real ones are."""

import re
import shlex
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
MODELS = {"sd35": "sd3", "flux": "flux", "flux2": "flux2", "zimage": "z_image", "qwen": "qwen_image"}
"""Environments of base models of rectified flow, and their tiny ones."""
PAGES = dict.fromkeys(MODELS, "base-models") | {"sdxl": "sdxl", "sd15": "sdxl"}
SINGLE_FILE = "base_model.path=models/my-finetune.safetensors"


def documented(environment: str, single_file: bool = False) -> list[str]:
    """The command that the environment's page shows, as a shell splits it. Where one stands for several environments: with the
    name in the place of the one that is shown."""
    page = (ROOT / f"docs/how-to/{PAGES[environment]}.md").read_text()
    commands = re.findall(r"^kedro run --pipelines=break_make .*$", page, re.MULTILINE)
    if single_file:
        commands = re.findall(
            rf"^kedro run .*{SINGLE_FILE}.*$", (ROOT / "docs/how-to/base-models.md").read_text(), re.MULTILINE
        )
    elif shown := [command for command in commands if f"--env={environment} " in command and "base_model" not in command]:
        commands = shown
    command, *_ = commands
    return shlex.split(re.sub(r"--env=\w+", f"--env={environment}", command))


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
    return given | own


def put_single_file(folder: Path, models: Path) -> None:
    """What the documented command names: one file, and a folder without weights."""
    shutil.copytree(folder, models / "sdxl", ignore=shutil.ignore_patterns("*.safetensors"))
    as_single_file(folder, models / "my-finetune.safetensors")


RARELY = [(name, False) for name in ("sdxl", "sd15", "sd35", "flux", "zimage", "qwen")]


@pytest.mark.parametrize(
    ("name", "single_file"),
    [("flux2", False), *(pytest.param(*each, marks=pytest.mark.slow) for each in [("sdxl", True), *RARELY])],
)
def test_break_make_runs_as_documented(name, single_file, tiny_sdxl, tiny_sd, tiny_flow, project, store, tmp_path):  # noqa: F811
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
    if single_file:
        put_single_file(Path(folder), project / "models")
    variables = environment(project) | {"MLFLOW_TRACKING_URI": store}
    del variables["KEDRO_ENV"]
    try:
        conf.write_text(yaml.safe_dump(parameters))
        done = warm.run(documented(name, single_file), project, variables)
    finally:
        conf.write_text(before)
        shutil.rmtree(project / "mlruns", ignore_errors=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "drawn").glob("drawn-*/000.png"))) == 6
    client = MlflowClient(store)
    tags = client.get_model_version_by_alias("b4m-make-teapot-ink", "trial").tags
    expected = {key: parameters["base_model"].get(key) for key in ("config", "vae", "variant")}
    if single_file:
        expected |= {"config": str(project / "models/sdxl"), "variant": None}
    assert {key: tags.get(f"base_{key}") for key in expected} == expected and tags["resolution"] == "32"
    assert tags["base_model"] == ("models/my-finetune.safetensors" if single_file else parameters["base_model"]["path"])
    assert ("base_pipeline" in tags) == (name in MODELS)
    assert Image.open(project / "data/08_reporting/contact_sheet.png").width > 400
