"""Progress that is drawn here, or told to whoever draws it."""

import pytest

from b4m_pipeline.common.progress import Progress, ProgressBar, draw_elsewhere


@pytest.fixture
def told():
    found: list[Progress] = []
    draw_elsewhere(found.append)
    yield found
    draw_elsewhere(None)


def test_a_bar_is_drawn_at_its_beginning_and_end(capsys) -> None:
    with ProgressBar(total=3, desc="break") as bar:
        for step in range(3):
            bar.set_postfix({"loss": step}, refresh=False)
            bar.update()
    drawn = capsys.readouterr().err
    assert "break:   0%" in drawn and "3/3" in drawn and "loss=2" in drawn and "1/3" not in drawn  # once a second


def test_progress_is_told_instead_of_drawn_and_can_be_drawn_elsewhere(told, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")  # the other process decides
    with ProgressBar(total=3, initial=1, desc="break") as bar:
        bar.set_postfix({"loss": 0.5}, refresh=False)
        bar.update(2)
    assert told[0] == Progress("break", 1, 3, "") and told[-1] == Progress("break", 3, 3, "loss=0.5")
    assert capsys.readouterr().err == ""
    draw_elsewhere(None)
    monkeypatch.delenv("TQDM_DISABLE")
    with ProgressBar(total=3, desc="break") as bar:
        bar.show(told[-1])
    assert "break: 100%" in capsys.readouterr().err
