"""Commands in processes of their own that need not import torch, diffusers and MLflow first, which takes ten seconds each:
they are forked from one process that has imported the libraries, and nothing of this project."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_LIBRARIES = [
    "torch", "torch._dynamo", "accelerate", "peft.tuners.lora", "pandas", "PIL.Image", "sqlalchemy", "alembic",
    "diffusers.models.unets.unet_2d_condition", "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl", "diffusers.pipelines.auto_pipeline",
    "transformers.models.clip.modeling_clip", "transformers.models.clip.processing_clip",
    "mlflow", "mlflow.genai", "mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "kedro.framework.cli", "kedro.framework.session", "kedro_mlflow.framework.hooks",
]  # fmt: skip
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_LIBRARIES)


def run(command: list[str], cwd: Path, environment: dict[str, str], timeout: float = 600) -> subprocess.CompletedProcess:
    """`kedro ...` or `python -c CODE`, as subprocess.run would do it. environment: the whole of it; PYTHONPATH is heeded.
    Variables that a library reads when it is imported do not count."""
    with tempfile.TemporaryDirectory() as folder:
        output, errors = Path(folder) / "output", Path(folder) / "errors"
        process = start(command, cwd, environment, output, errors)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            said = [file.read_text() if file.exists() else "" for file in (output, errors)]
            raise subprocess.TimeoutExpired(command, timeout, *said)
        return subprocess.CompletedProcess(command, process.exitcode, output.read_text(), errors.read_text())


def start(command: list[str], cwd: Path, environment: dict[str, str], output: Path, errors: Path) -> multiprocessing.Process:
    """See `run`; the process goes on until it ends or is killed. output, errors: files for what it writes."""
    process = _context.Process(target=_run, args=(command, str(cwd), environment, str(output), str(errors)))
    process.start()
    return process


def _run(command: list[str], cwd: str, environment: dict[str, str], output: str, errors: str) -> None:
    for stream, file in ((1, output), (2, errors)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    multiprocessing.set_start_method(None, force=True)  # as in any other process
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    inherited = [path for path in sys.path if "site-packages" in path or path.startswith(sys.base_prefix)]
    sys.path[:] = [*filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), *inherited]
    match command:
        case ["kedro", *arguments]:
            from kedro.framework.cli import main

            sys.argv = ["kedro", *arguments]
            main()
        case ["python", "-c", code, *arguments]:
            sys.argv = ["-c", *arguments]
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        case _:
            raise ValueError(f"neither kedro nor python -c: {command}")
