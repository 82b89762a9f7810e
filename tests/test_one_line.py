"""What the command line says of errors: a user's are one line, a defect keeps its traceback."""

from pathlib import Path

import click
import pytest
import torch
import yaml
from click.testing import CliRunner
from kedro.io import DatasetError
from mlflow.exceptions import MlflowException
from safetensors import SafetensorError

from b4m_pipeline.method.adapter import AdapterError
from b4m_pipeline.one_line import OneLineErrors, explain, is_users_error
from b4m_pipeline.training.checkpoints import CheckpointError
from b4m_pipeline.training.trainer import DivergenceError

ROOT = Path(__file__).parents[1]


def test_defects_keep_their_traceback() -> None:
    def caught(function, *arguments) -> Exception:
        try:
            function(*arguments)
        except Exception as error:
            return error
        raise AssertionError

    assert not is_users_error(caught(int, "x"))  # a ValueError, but not one that we raise
    assert not is_users_error(caught(dict.__getitem__, {}, "x"))
    assert is_users_error(OSError(28, "No space left on device"))
    assert is_users_error(SafetensorError("No space left on device"))
    assert is_users_error(CheckpointError("x"))
    assert is_users_error(DivergenceError("x"))
    assert is_users_error(AdapterError("x"))
    wrapped = DatasetError("x")
    wrapped.__cause__ = TypeError("a defect in a dataset")
    assert not is_users_error(wrapped)
    wrapped.__cause__ = AdapterError("x")
    assert is_users_error(wrapped)


@pytest.mark.parametrize("sql", ["", "[SQL: INSERT INTO runs\nVALUES (?)]\n"])
def test_an_error_of_mlflows_database_is_one_line(sql) -> None:
    error = MlflowException(
        f"(sqlite3.OperationalError) disk I/O error\n{sql}(Background on this error at: https://sqlalche.me/e/21/x)"
    )
    assert explain(error) == "MLflow's database cannot be used: (sqlite3.OperationalError) disk I/O error. Is its disk full?"
    assert explain(MlflowException("There is no such alias")) == "There is no such alias"
    logging = yaml.safe_load((ROOT / "conf/logging.yml").read_text())
    assert logging["loggers"]["mlflow.store.db.utils"]["level"] == "CRITICAL"  # where MLflow says all of it, and where it is


def test_a_full_gpu_is_answered_with_what_to_turn_on() -> None:
    @click.command(cls=OneLineErrors)
    @click.option("--apple", is_flag=True)
    def train(apple: bool):
        said = "out of memory. Tried to allocate 2 GiB"
        raise RuntimeError(f"MPS backend {said}") if apple else torch.OutOfMemoryError(f"CUDA {said}")

    for options in ([], ["--apple"]):
        result = CliRunner().invoke(train, options)
        assert result.exit_code == 1
        assert "gradient_checkpointing: true" in result.output and "Tried to allocate 2 GiB" in result.output
