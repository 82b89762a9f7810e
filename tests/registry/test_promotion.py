"""Aliases that move and come back."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import mlflow
import pytest
from click.testing import CliRunner
from mlflow.exceptions import MlflowException

from b4m_pipeline.cli import adapters, cli
from b4m_pipeline.registry.promotion import PromotionError, promote, roll_back

NAME = "b4m-make-cup-ink"
MADE = {"kind": "made", "name": "cup-ink", "content_name": "cup", "style_name": "ink", "frame": "abcdef12" * 2}


def add(client, name: str = NAME, **tags: str) -> str:
    """A version without files: the registry alone is asked here."""
    if not client.search_registered_models(f"name='{name}'"):
        client.create_registered_model(name)
    version = client.create_model_version(name, "file:///nowhere", tags=MADE | {"base_model_id": "tiny@123"} | tags).version
    client.set_registered_model_alias(name, "candidate", version)
    return str(version)


def champion(client) -> str:
    return str(client.get_model_version_by_alias(NAME, "champion").version)


@pytest.fixture
def three(tracking):
    for _ in range(3):
        add(tracking)
    return tracking


def test_the_candidate_is_promoted_unless_a_version_is_named(three):
    assert str(promote(NAME)) == f"{NAME}@champion: version 3 (before: none)"
    move = promote(NAME, "1")
    assert (move.before, move.now, champion(three)) == ("3", "1", "1")
    assert promote(NAME, "2", "staging").before is None
    assert champion(three) == "1"


def test_several_roll_backs_walk_back(three):
    for version in ("1", "2", "3"):
        promote(NAME, version)
    assert [roll_back(NAME).now, roll_back(NAME).now] == ["2", "1"]
    with pytest.raises(PromotionError, match="before 1: there is nothing to roll back to"):
        roll_back(NAME)
    assert champion(three) == "1"
    promote(NAME, "3")
    promote(NAME, "3")  # twice the same is one step
    assert roll_back(NAME).now == "1"


def test_promoting_an_earlier_version_again_is_a_step_of_its_own(three):
    for version in ("1", "2", "1", "3"):
        promote(NAME, version)
    assert [roll_back(NAME).now for _ in range(3)] == ["1", "2", "1"]


def test_an_alias_that_was_moved_by_hand_counts(three):
    promote(NAME, "1")
    three.set_registered_model_alias(NAME, "champion", "2")
    promote(NAME, "3")
    assert [roll_back(NAME).now, roll_back(NAME).now] == ["2", "1"]
    three.set_registered_model_alias(NAME, "champion", "3")
    assert roll_back(NAME).now == "1"


def test_deleted_versions_are_not_rolled_back_to(three):
    for version in ("1", "2", "3"):
        promote(NAME, version)
    three.delete_model_version(NAME, "2")
    assert roll_back(NAME).now == "1"


def test_other_aliases_have_histories_of_their_own(three):
    promote(NAME, "1", "shop")
    promote(NAME, "2", "shop-test")
    promote(NAME, "3", "shop")
    assert roll_back(NAME, "shop").now == "1"
    with pytest.raises(PromotionError, match="nothing to roll back to"):
        roll_back(NAME, "shop-test")


def test_who_is_overtaken_is_told_and_leaves_no_trace(three, monkeypatch):
    promote(NAME, "1")
    original = mlflow.MlflowClient.set_registered_model_alias

    def overtaken(self, name, alias, version):
        original(self, name, alias, version)
        original(self, name, alias, "3")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", overtaken)
        with pytest.raises(PromotionError, match="somebody else moved it at the same time: it is version 3 now"):
            promote(NAME, "2")
    assert champion(three) == "3"
    assert roll_back(NAME).now == "1"


def test_two_at_once_have_one_outcome(three):
    promote(NAME, "1")

    def attempt(version: str) -> str:
        try:
            return promote(NAME, version, client=mlflow.MlflowClient()).now
        except PromotionError:
            return "overtaken"

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(attempt, ["2", "3"]))
    assert champion(three) in outcomes
    assert roll_back(NAME).now in ("1", *outcomes)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: promote("b4m-make-nobody"), "The registry has no b4m-make-nobody; kedro adapters"),
        (lambda: roll_back("b4m-make-nobody"), "The registry has no b4m-make-nobody"),
        (lambda: promote(NAME, "9"), "no version 9; its newest is 3"),
        (lambda: promote(NAME, "x"), "no version x; its newest is 3"),
        (lambda: roll_back(NAME), f"no champion that could be rolled back: kedro promote {NAME}"),
    ],
)
def test_what_the_registry_does_not_have_is_said(three, action, message):
    with pytest.raises(PromotionError, match=message):
        action()


def test_without_a_candidate_the_version_must_be_named(three):
    three.delete_registered_model_alias(NAME, "candidate")
    with pytest.raises(PromotionError, match="no candidate: say which version is meant, --version 3"):
        promote(NAME)


def test_a_server_that_fails_is_not_taken_for_an_empty_one(three, monkeypatch):
    def fail(*args, **kwargs):
        raise MlflowException("the server is away")

    monkeypatch.setattr(mlflow.MlflowClient, "get_registered_model", fail)
    with pytest.raises(MlflowException, match="the server is away"):
        promote(NAME)


@pytest.fixture
def project(tracking, tmp_path, monkeypatch):
    """Commands without a Kedro project around them: the store is the test's own."""
    monkeypatch.setattr(
        "b4m_pipeline.cli.KedroSession.create", lambda env=None, runtime_params=None: contextlib.nullcontext(_Session())
    )
    return tracking


class _Session:
    def load_context(self) -> None:
        pass


def test_commands_promote_list_and_roll_back(project):
    def kedro(*arguments: str):
        return CliRunner().invoke(cli, arguments)

    assert "no adapter" in kedro("adapters").output
    for _ in range(2):
        add(project)
    assert kedro("promote", NAME, "--version", "1").output == f"{NAME}@champion: version 1 (before: none)\n"
    assert kedro("promote", NAME).output == f"{NAME}@champion: version 2 (before: 1)\n"
    listed = kedro("adapters", "--kind", "make", "--concept", "cup")
    assert listed.exit_code == 0 and "candidate, champion" in listed.output and "abcdef12" in listed.output
    assert kedro("roll-back", NAME).output == f"{NAME}@champion: version 1 (before: 2)\n"
    for arguments in (("roll-back", NAME), ("promote", "nobody"), ("promote", NAME, "--version", "7")):
        refused = kedro(*arguments)
        assert refused.exit_code == 1 and refused.output.startswith("Error: ") and refused.output.count("\n") == 1
    assert {option.name for option in adapters.params} == {"kind", "concept", "frame", "base", "limit", "env"}
    first = kedro("adapters", "--limit", "1")
    assert "There are more than these 1" in first.output and "There are more" not in kedro("adapters", "--limit", "2").output
    assert first.output.count(NAME) == 1 and kedro("adapters", "--limit", "0").output.count(NAME) == 2
