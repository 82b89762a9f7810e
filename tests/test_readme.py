"""Every command of README, tutorial and the page on Kedro, run as it stands there in a copy of the project, with KEDRO_ENV=test
to keep it short. Kedro's commands, that of `make run` too, are run by `warm`, which spares each the import of the libraries; a
slow test runs `make run` by a shell, as a user does, and tests/hostile/test_makefile.py all that it does but the training."""

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from PIL import Image

from b4m_pipeline.common.locks import FolderLock
from tests import warm
from tests.test_startup import ROOT

README, TUTORIAL, KEDRO, REGISTRY = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "docs/tutorial.md", "docs/how-to/kedro.md", "docs/registry.md")
)
PAGES = (README, TUTORIAL, KEDRO)
BLOCKS = [block for page in PAGES for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL)]
SHELL = list(dict.fromkeys(line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()))
PYTHON = re.findall(r"```python\n(.*?)```", REGISTRY, re.DOTALL)
NOT_RUN = {
    "make run": "its installation is that of `make test`; `make -o install run` is run below",
    "make studio": "see tests/test_studio_command.py",
    "make viz": "run below: it serves until it is ended",
    "kedro mlflow ui": "run below: it serves until it is ended",
    "source .venv/bin/activate": "a test has its environment",
}
COPIED = ("src", "conf", "data/01_raw", "data/06_models/embedded_base", "data/06_models/embedded_clip", "docs")


@pytest.fixture(scope="module")
def project(tmp_path_factory, empty_store) -> Path:
    """What a run reads of the repository, with two folders of own pictures and a store without runs."""
    root = tmp_path_factory.mktemp("project")
    for name in COPIED:
        unwanted = shutil.ignore_patterns("node_modules", "local", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, root / name, ignore=unwanted)
    (root / "conf/local").mkdir()
    shutil.copy(empty_store, root)
    with open(root / "conf/test/globals.yml", "a") as file:  # two steps count as a finished training here
        file.write("registry: {trial: {break_steps: 2, make_steps: 2}}\n")
    for name in ("pyproject.toml", "Makefile", "constraints.txt", ".telemetry"):
        shutil.copy(ROOT / name, root)
    for name, colour in (("teapot", (200, 30, 30)), ("ink", (20, 20, 90))):
        folder = root / "data/01_raw/own" / name
        folder.mkdir(parents=True)
        for index in range(2):
            picture = Image.effect_noise((80 + 40 * index, 70), 60).convert("RGB")
            picture.paste(colour, (10, 10, 40 + 10 * index, 50))
            picture.save(folder / f"{index}.jpg")
    return root


def environment(project: Path) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return own | {"KEDRO_ENV": "test", "PATH": path, "VIRTUAL_ENV": sys.prefix, "PYTHONPATH": str(project / "src")}


def kedro(project: Path, command: str) -> subprocess.CompletedProcess:
    """A command without pipes, variables and the like."""
    return warm.run(shlex.split(command), project, environment(project))


def kedro_of(project: Path, target: str) -> subprocess.CompletedProcess:
    """What `make TARGET` would run."""
    (command,) = [line for line in sh(project, f"make -n -o install {target}").stdout.splitlines() if '/kedro" run' in line]
    return kedro(project, "kedro" + command.split('/kedro"', 1)[1])


def python(project: Path, code: str) -> subprocess.CompletedProcess:
    return warm.run(["python", "-c", code], project, environment(project))


def sh(project: Path, command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", command], cwd=project, env=environment(project), capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def default_run(project) -> subprocess.CompletedProcess:
    """The command of `make run`, done."""
    return kedro_of(project, "run")


def test_make_run_ends_with_three_models_and_says_where_the_contact_sheet_is(project, default_run) -> None:
    from mlflow.tracking import MlflowClient

    assert default_run.returncode == 0, default_run.stderr[-3000:]
    said = re.search(r"Contact sheet: ([^\s\"]+)", sh(project, "make -n -o install run").stdout)
    assert Image.open(said[1]).width > 400
    client = MlflowClient(f"sqlite:///{project / 'mlflow.db'}")
    models = {model.name: model.aliases for model in client.search_registered_models()}
    assert set(models) == {"b4m-content-penguin", "b4m-style-knit", "b4m-make-penguin-knit"}
    assert all("candidate" in aliases for aliases in models.values())
    version = client.get_model_version_by_alias("b4m-make-penguin-knit", "candidate")
    assert "models:/b4m-content-penguin/" in version.tags["parents"] and "b4m-style-knit" in version.tags["parents"]
    run = client.get_run(version.run_id)
    assert "evaluation.made.composition.s_harm" in run.data.metrics and "joint_make.loss_make" in run.data.metrics
    assert "contact_sheet" in str([file.path for file in client.list_artifacts(version.run_id, "pictures")])


def test_a_run_says_what_it_does_and_nothing_else(default_run) -> None:
    """No other library's line, nothing twice, and commands that come next."""
    lines = [line for line in default_run.stderr.replace("\r", "\n").splitlines() if line.strip()]
    assert [line for line in lines if not re.match(r"\d\d:\d\d:\d\d (INFO   |WARNING) ", line)] == []
    said = [line[17:] for line in lines]
    assert len(set(said)) == len(said)
    stages = [line for line in said if line.startswith("Stage ")]
    assert [line.split(":")[0].split(" done")[0] for line in stages] == [
        f"Stage {place} of 6, {name}"
        for place, name in enumerate(
            ("pictures", "content break", "style break", "reconstruction", "make", "evaluation"), start=1
        )
        for _ in ("before", "after")
    ]
    made = next(line for line in said if line.startswith("Made: "))
    assert made.endswith(".png") and any(line.startswith("Kept of both content and style: ") for line in said)
    assert any(line.startswith("Next: kedro run --env=test --pipelines=generate --params=") for line in said)


@pytest.mark.slow
def test_rehearsal_runs_as_the_docs_say(project, default_run) -> None:
    page = (ROOT / "docs/how-to/own-pictures.md").read_text()
    (command,) = re.findall(r"^kedro .*joint_make.*$", page, re.MULTILINE)
    folder = project / re.search(r"Rehearsal: .* in (\S+)\. Delete", default_run.stderr)[1]
    drawn = sorted(folder.glob("*.png"))
    drawn[0].unlink()
    drawn[0].with_suffix(".txt").unlink()
    done = kedro(project, command)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"the pictures in {folder.relative_to(project)} are used" in done.stderr and not drawn[0].exists()
    assert "made penguin-knit is trained, as it differs from" in done.stderr


def test_the_python_of_the_docs_gets_the_picture_that_evaluation_drew(project, default_run) -> None:
    import numpy as np
    import pandas as pd

    (code,) = PYTHON
    code = code.replace("num_inference_steps=20", "num_inference_steps=2")  # as KEDRO_ENV=test draws
    done = python(project, code)
    assert done.returncode == 0, done.stderr[-3000:]
    samples = pd.read_csv(project / "data/07_model_output/samples.csv")
    row = samples[(samples.system == "made") & (samples.prompt == "a grelk emoji in w@z style") & (samples.seed == 0)].iloc[0]
    evaluated = np.asarray(Image.open(project / f"data/07_model_output/samples/{row.picture}.png"), int)
    assert np.abs(evaluated - np.asarray(Image.open(project / "penguin.png"), int)).max() <= 1


OWN_PAIR_LAST = sorted(
    (line for line in SHELL if line.startswith("kedro ") and line not in NOT_RUN and "--env=sd" not in line),
    key=lambda line: "teapot" in line,
)


@pytest.mark.parametrize("command", OWN_PAIR_LAST)  # the others are of the default pair
def test_every_kedro_command_runs(project, default_run, command) -> None:
    done = kedro(project, command)
    assert done.returncode == 0, done.stderr[-3000:]
    if "break_make" in command:
        assert "models:/b4m-make-teapot-ink/1 (candidate)" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="make corpus needs npm")
def test_the_base_model_can_be_made_anew(project) -> None:
    """From the packages to the weights; the other tests' base is left alone, as KEDRO_ENV=test writes elsewhere."""
    assert "`make corpus`" in KEDRO and "`make pretrain`" in KEDRO
    for run, command in (
        (sh, "make -o install corpus"),
        (kedro_of, "pretrain"),
        (kedro, "kedro run --pipelines=pretrain_further"),
    ):
        done = run(project, command)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    models = project / "data/06_models"
    assert (models / "test_base/model_index.json").exists() and (models / "test_clip/tags.json").exists()
    first, further = json.loads((models / "test_base/training.json").read_text())
    assert set(further["contents"]) - set(first["contents"]) == {"cat face"} and further["steps"] == 2
    assert Image.open(project / "data/08_reporting/embedded_base_sheet.png").width > 64


def test_sdxl_command_says_what_is_missing(project) -> None:
    """Without network or local weights: one error that names the parameter, nothing trained."""
    (command,) = [line for line in SHELL if "--env=sdxl" in line]
    done = kedro(project, command)
    assert done.returncode == 1
    assert "base_model.path: 'stabilityai/stable-diffusion-xl-base-1.0'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stage_refuses_what_was_made_for_another_content(project, default_run) -> None:
    other = "content.path=data/01_raw/own/teapot,content.noun=teapot"
    done = kedro(project, f"kedro run --pipelines=plp_reconstruction --params={other}")
    assert done.returncode == 1
    said = r"Error: (content|style)_adapter: its (content|style) is '.+' [(].+[)], and this run's is '.+'"  # by what ran before
    assert re.search(said, done.stderr) and "Traceback" not in done.stderr, done.stderr[-1000:]


def test_a_second_run_works_in_a_data_folder_of_its_own(project, default_run) -> None:
    page = (ROOT / "docs/reliability.md").read_text()
    (command,) = re.findall(r"^kedro run .*$", page, re.MULTILINE)
    first = FolderLock(project / "data")
    first.acquire("kedro run", "")
    try:
        done = kedro(project, command)
    finally:
        first.release()
    assert done.returncode == 0, done.stderr[-3000:]
    assert list((project / "data/second/07_model_output/generated").glob("*.png"))


def test_no_command_is_forgotten() -> None:
    inline = set(re.findall(r"`(make [^`]+|kedro [^`]+)`", README))
    assert inline == {"make viz", "make docs", "make test", "kedro mlflow ui"}  # each has its test
    assert all(line.startswith("kedro ") or line in NOT_RUN for line in SHELL if line)  # run above, each of them
    assert set(NOT_RUN) <= set(SHELL) and len(PYTHON) == 1


def test_the_readme_is_one_screen() -> None:
    """What it is, for whom, a picture, two commands and why to train at all, before anything else; the rest a command each."""
    first, *sections = README.split("\n## Your own pictures")[0], *README.split("\n## ")[2:]
    assert len(first.splitlines()) < 40 and "docs/images/strips.png" in first and "reference images?" in first
    assert all(section.count("```bash") <= 1 for section in sections) and len(README.splitlines()) < 120


FORKS = """import multiprocessing, sys
from kedro.framework.cli import main
fork = multiprocessing.get_context("fork")  # one that is spawned, as Kedro-Viz's server is, imports all libraries again
multiprocessing.get_context = lambda method=None: fork
sys.argv = ["kedro", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("command", ["make viz", "kedro mlflow ui"])
def test_browser_commands_serve(project, default_run, command, tmp_path) -> None:
    assert f"`{command}`" in README
    if command == "make viz":
        command, port = sh(project, "make -n -o install viz").stdout.split('/kedro"', 1)[1], None
    else:
        with socket.create_server(("127.0.0.1", 0)) as probe:  # Kedro-Viz looks for one itself
            port = probe.getsockname()[1]
        (project / "conf/test/mlflow.yml").write_text(f"ui: {{port: '{port}'}}")
    own = environment(project) | {"BROWSER": "true", "MLFLOW_WORKERS": "1", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    output, errors = tmp_path / "output", tmp_path / "errors"
    output.touch()
    command = shlex.split(command.removeprefix("kedro"))
    server = psutil.Process(warm.start(["python", "-c", FORKS, *command], project, own, output, errors).pid)
    processes = [server]
    try:
        for _ in range(1000):
            time.sleep(0.2)
            processes = [server, *server.children(recursive=True)]
            if port is None and (said := re.search(r"running at\s+http://127\.0\.0\.1:(\d+)", output.read_text())):
                port = said[1]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port or 9}/", timeout=5) as answer:
                assert answer.status == 200
                break
        else:
            pytest.fail(f"{command} did not answer")
    except psutil.NoSuchProcess:
        pytest.fail(f"{command} ended: {output.read_text()} {errors.read_text()}")
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.mark.slow
def test_make_run_runs_in_a_shell(project, default_run) -> None:
    """From the first import on, without a store: last, as it makes another."""
    (project / "mlflow.db").unlink()
    done = sh(project, "make -o install run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"^Contact sheet: (\S+)$", done.stdout, re.MULTILINE) and (project / "mlflow.db").exists()
