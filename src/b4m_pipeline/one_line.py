"""What the command line says of errors and of Ctrl-C: a user's error is one line, a defect keeps its traceback."""

import contextlib
import logging
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from kedro.config import MissingConfigException
from kedro.io import DatasetError
from kedro.validation.exceptions import ParameterValidationError

logger = logging.getLogger(__name__)

OUT_OF_MEMORY = (
    "The GPU's memory is full. `kedro memory` says what each stage needs. Use the environment's settings for this GPU, where "
    "it has some (memory: 8, 12 or 24). Or set gradient_checkpointing: true for the stage, in a break also one_pass: false, "
    "lower its batch_size (gradient_accumulation makes up for it), base_model.resolution or frame.rank; while pictures are "
    "drawn, evaluation.batch_size."
)


GO_ON = "Stopped. The same command goes on: what is finished is kept, a training continues from its last checkpoint."


def _given_command() -> str:
    """What was typed, as far as a process knows it."""
    program = Path(sys.argv[0]).stem
    begun = ["kedro"] if program in ("kedro", "__main__") else [program]
    return shlex.join([*begun, *sys.argv[1:]])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's memory was full: torch's own error, which is not imported for this, or what it says of Apple's GPUs."""
    return type(error).__name__ == "OutOfMemoryError" or str(error).startswith("MPS backend out of memory")


def is_users_error(error: BaseException) -> bool:
    """Whether an error is about input, configuration, services or the disk: a ValueError that this package or Kedro raises, a
    subclass of ours, the file system's, or MLflow's. A ValueError out of another library is a defect, and keeps its
    traceback."""
    if isinstance(error, DatasetError) and error.__cause__ is not None:  # Kedro wraps whatever a dataset raises
        return is_users_error(error.__cause__)
    if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":  # what safetensors makes of a full disk
        return True
    if isinstance(error, ParameterValidationError | MissingConfigException | DatasetError):
        return True
    if type(error).__module__.startswith("mlflow."):
        return True
    if not isinstance(error, ValueError):
        return False
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    raised_in = trace.tb_frame.f_globals.get("__name__", "") if trace else ""
    return type(error).__module__.startswith("b4m_pipeline.") or raised_in.split(".")[0] in ("b4m_pipeline", "kedro")


@contextlib.contextmanager
def ended_as_killed() -> Iterator[None]:
    """Ctrl-C, and a request to end (SIGTERM), end MLflow's runs as KILLED; by itself MLflow would call them FINISHED."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if main else None
    try:
        yield
    except KeyboardInterrupt:
        if "mlflow" in sys.modules:
            from b4m_pipeline.registry.runs import end_active

            end_active("KILLED")
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


_SQLALCHEMY = re.compile(r"\n(?:\[SQL: .*?\n)?\(Background on this error at: [^\n]*\)", re.DOTALL)
"""What it adds to a database's own words."""


def explain(error: BaseException) -> str | None:
    """What a user is told of an error; None for a defect, which keeps its traceback."""
    if is_out_of_memory(error):
        return f"{OUT_OF_MEMORY}\n{error}"
    if not is_users_error(error):
        return None
    wrapped = isinstance(error, DatasetError) and error.__cause__  # Kedro's own words say where, and two lines of it
    said = _SQLALCHEMY.sub("", str(wrapped or error))
    return f"MLflow's database cannot be used: {said}. Is its disk full?" if said.startswith("(") else said


class OneLineErrors(click.Command):
    """A command whose users' errors end in `Error: ...` and exit code 1; their traceback is logged at DEBUG."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with ended_as_killed():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            if ctx.command.name == "run":
                click.echo(f"\n{GO_ON}\n  {_given_command()}", err=True)
            raise
        except click.ClickException:
            raise
        except Exception as error:
            if (told := explain(error)) is None:
                raise
            logger.debug("Traceback of the error below", exc_info=True)
            raise click.ClickException(told) from error
