"""The benchmark of the default run: what it reads out of a log, and how runs are paired."""

from datetime import datetime

from benchmarks.break_make import IN_ORDER, compare, nodes

LOG = """12:00:05 INFO    Kedro project x
12:00:10 INFO    Completed node: encode_pictures
style break:  99%|####| 1/2 [00:01]\r12:01:10 INFO    Completed node: content_break.train_half
12:01:12 INFO    Completed node: style_break.train_half
"""


def test_a_node_takes_from_the_end_of_the_one_before() -> None:
    found = nodes(LOG, datetime(2026, 11, 28, 12, 0, 0))
    assert found == {"encode_pictures": 10, "content_break.train_half": 60, "style_break.train_half": 2}


def test_runs_take_turns_and_the_ratio_is_of_each_pair() -> None:
    asked = []

    def measure(arguments: list[str]):
        asked.append(arguments)
        seconds = 30.0 if IN_ORDER in arguments else 20.0
        return 100 + seconds, {"encode": 5.0, "content_break.train_half": seconds, "style_break.train_half": 1.0}

    told = compare(2, ["--env=test"], measure).splitlines()
    assert asked == [["--env=test"], ["--env=test", IN_ORDER]] * 2
    assert told[2] == "| both breaks | 21 21 | 31 31 | 1.48 [1.48, 1.48] |"
    assert told[3] == "| whole run | 120 120 | 130 130 | 1.08 [1.08, 1.08] |"
