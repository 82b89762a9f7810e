"""`kedro memory`, as a user calls it."""

from tests import warm
from tests.test_readme import environment, project  # noqa: F401 (project is a fixture)


def test_every_stage_has_a_row_and_what_does_not_fit_a_remedy(project) -> None:  # noqa: F811
    command = ["kedro", "memory", "--env=test", "--gib=0.6"]
    done = warm.run(command, project, environment(project))
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert [row.split(" | ")[0] for row in rows[2:5]] == ["| encode prompts", "| encode pictures", "| content_break"]
    assert rows[4].endswith("| yes |") and rows[-1].endswith("| no; with batch_size: 1 |")


def test_a_memory_that_the_environment_has_no_settings_for_is_one_line(project) -> None:  # noqa: F811
    done = warm.run(["kedro", "memory", "--env=sdxl", "--params=memory=10"], project, environment(project))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "Error: memory is 10, and this environment has settings for 8, 12, 24 (GB): use one of these, or null"
    )
