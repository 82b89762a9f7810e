"""Files that are there as a whole or not at all."""

import errno
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from b4m_pipeline.common.whole_files import whole_file, write_whole


def test_many_writers_of_one_file_leave_one_of_their_texts(tmp_path) -> None:
    file = tmp_path / "new folder" / "record.json"
    texts = [json.dumps({"writer": number, "long": "x" * 1000 * number}) for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_whole(file, text), texts * 5))
    assert file.read_text() in texts and list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("sole", [False, True])
def test_an_error_leaves_what_was_there_and_nothing_beside_it(tmp_path, sole) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")

    def write() -> None:
        with whole_file(file, sole) as own:
            own.write_text("half")
            assert file.read_text() == "old" and own.parent == tmp_path
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        write()
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("told", [(), (True,)])
def test_an_error_of_the_system_names_the_file_that_was_wanted(tmp_path, told) -> None:
    with pytest.raises(OSError, match="No space left.*a.txt'$") as caught, whole_file(tmp_path / "a.txt") as own:
        raise OSError(errno.ENOSPC, "No space left", *map(str, [own] if told else []))
    assert "partial" not in str(caught.value)


def test_a_file_that_cannot_take_the_name_is_named(tmp_path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(OSError, match="a.txt'$"):
        write_whole(tmp_path / "a.txt", "text")


def test_what_a_killed_sole_writer_left_is_written_over(tmp_path) -> None:
    file = tmp_path / "state.safetensors"
    with whole_file(file, sole=True) as own:
        left = own
        own.write_text("first")
    left.write_text("half a file")
    with whole_file(file, sole=True) as own:
        own.write_text("second")
    assert file.read_text() == "second" and list(tmp_path.iterdir()) == [file]


def test_a_name_as_long_as_the_system_allows_can_be_written(tmp_path) -> None:
    file = tmp_path / ("n" * 255)
    write_whole(file, "text")
    assert file.read_text() == "text"
