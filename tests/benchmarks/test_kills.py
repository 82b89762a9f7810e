"""The benchmark of kills: that it tells the stage, finds what is wrong, and goes on where it was."""

import json
import subprocess
import sys

import pytest

from benchmarks import kills

ORDER = ["check_pictures", "content_break.train_half", "evaluate"]
ROUNDS = [
    {"round": 0, "killed": ["start", "evaluate"], "settled": {"taken back": 1, "finished": 0}, "faults": []},
    {"round": 1, "killed": ["evaluate", "evaluate"], "settled": {"taken back": 0, "finished": 1}, "faults": ["weights differ"]},
]


@pytest.mark.parametrize(
    ("said", "stage"),
    [
        ("", "start"),
        ("INFO Kedro project x", "check_pictures"),
        ("Kedro project x\nCompleted node: check_pictures\nINFO", "content_break.train_half"),
        ("Kedro project x\nCompleted node: check_pictures\nCompleted node: evaluate\n", "end"),
    ],
)
def test_the_stage_follows_from_the_last_node_that_was_done(said, stage) -> None:
    assert kills.stage(said, ORDER) == stage


def test_the_table_counts_kills_by_stage_and_names_faults() -> None:
    table = kills.table(ROUNDS, ORDER)
    assert "| start | 1 | 0 |" in table and "| evaluate | 3 | 1 |" in table and "check_pictures" not in table
    assert "4 kills in 2 rounds, 1 rounds with a fault." in table and "1 taken back, 1 finished" in table
    assert table.endswith("round 1: weights differ")


def test_cards_are_compared_without_numbers_of_runs_and_versions() -> None:
    assert (
        kills.plain("`models:/b4m-make-a-b/12` `runs:/0a1b/pictures/x.png`") == "`models:/b4m-make-a-b` `runs:/pictures/x.png`"
    )


def test_it_goes_on_where_it_was(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "reference.json").write_text(json.dumps({"seconds": 1.0, "order": ORDER, "outcome": {}}))
    (tmp_path / "rounds.jsonl").write_text(json.dumps(ROUNDS[0]) + "\n")
    monkeypatch.setattr(kills, "play", lambda folder, number, seed, known: ROUNDS[number])
    monkeypatch.setattr(sys, "argv", ["kills", "--kills=3", f"--folder={tmp_path}"])
    assert kills.main() == 1
    assert "4 kills in 2 rounds" in capsys.readouterr().out
    assert len((tmp_path / "rounds.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_run_that_takes_too_long_is_killed_and_what_it_said_is_known(tmp_path) -> None:
    code = "import sys, time; sys.stderr.write('Completed node: x\\n'); sys.stderr.flush(); time.sleep(60)"
    with pytest.raises(subprocess.TimeoutExpired) as error:
        kills.warm.run(["python", "-c", code], tmp_path, {}, timeout=5)
    assert "Completed node: x" in error.value.stderr


@pytest.mark.slow
def test_two_kills_leave_nothing_behind(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["kills", "--kills=2", f"--folder={tmp_path}"])
    assert kills.main() == 0, capsys.readouterr().out
