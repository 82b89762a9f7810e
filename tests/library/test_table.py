"""A table of contents and styles, and the pairs chosen from it."""

import pytest

from b4m_pipeline.inputs.params import ConceptParams
from b4m_pipeline.library import jobs as library
from b4m_pipeline.library.table import LibraryError, choose_pairs, read_table
from tests.library.helpers import CONTENT, STYLE, params


def test_the_table_gives_each_concept_its_token_noun_and_name(shelf):
    entries = read_table(params(shelf), CONTENT, STYLE)
    assert [(entry.kind, entry.concept.name, entry.concept.token) for entry in entries] == [
        ("content", "cup", "snq"),
        ("content", "hat", "snq"),
        ("style", "ink", "w@z"),
        ("style", "oil", "w@z"),
    ]
    (shelf / "library.yml").write_text(f"- {{kind: style, path: {shelf / 'ink'}, name: my-ink, licence: CC0-1.0}}")
    (entry,) = read_table(params(shelf, table=str(shelf / "library.yml")), CONTENT, STYLE)
    assert (entry.name, entry.concept.licence, entry.concept.noun) == ("style my-ink", "CC0-1.0", "toy")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("contents,{shelf}/cup", r"library.csv, line 3: kind must be content or style, got 'contents'"),
        ("content,", r"line 3: path must be given"),
        ("content,{shelf}/nowhere", r"line 3: .*nowhere is no folder with pictures"),
        ("content,{shelf}/cup", r"line 3: there is another content 'cup'"),
        ("content,{shelf}/hat,CUP", r"line 3: there is another content 'CUP'"),  # one folder on Windows and macOS
        ("content,{shelf}/hat,b/c", r"line 3: .*must be letters"),
        ("content,{shelf}/hat,hat,,,,more", r"line 3: more fields than the header"),
    ],
)
def test_a_wrong_row_is_named_by_its_line(shelf, row, message):
    table = shelf / "library.csv"
    table.write_text(f"kind,path,name,noun\ncontent,{shelf / 'cup'}\n{row.format(shelf=shelf)}\n")
    with pytest.raises(LibraryError, match=message):
        read_table(params(shelf), CONTENT, STYLE)


def test_other_faults_of_a_table(shelf):
    table = shelf / "library.csv"
    table.write_text("kind,path,colour\ncontent,x,red\n")
    with pytest.raises(LibraryError, match=r"unknown columns \['colour'\]"):
        read_table(params(shelf), CONTENT, STYLE)
    table.write_text("kind,path\n")
    with pytest.raises(LibraryError, match="names no content and no style"):
        read_table(params(shelf), CONTENT, STYLE)
    with pytest.raises(LibraryError, match="cannot be read"):
        read_table(params(shelf, table="nowhere.csv"), CONTENT, STYLE)


def test_pairs_are_all_none_or_named(shelf):
    entries = read_table(params(shelf), CONTENT, STYLE)
    assert choose_pairs(entries, params(shelf)) == [("cup", "ink"), ("cup", "oil"), ("hat", "ink"), ("hat", "oil")]
    assert choose_pairs(entries, params(shelf, pairs="none")) == []
    assert choose_pairs(entries, params(shelf, pairs=[{"content": "hat", "style": "ink"}])) == [("hat", "ink")]
    with pytest.raises(LibraryError, match=r"no style 'inc'; it has \['ink', 'oil'\]"):
        choose_pairs(entries, params(shelf, pairs=[{"content": "hat", "style": "inc"}]))


def test_two_pairs_of_one_name_are_refused(shelf):
    concepts = {"content": ("cat", "cat-face"), "style": ("face-ink", "ink")}
    entries = [
        library.Entry(kind, ConceptParams(path=str(shelf / "cup"), name=name, token="t"))
        for kind, names in concepts.items()
        for name in names
    ]
    with pytest.raises(LibraryError, match="would both be called cat-face-ink"):
        choose_pairs(entries, params(shelf))
    assert choose_pairs(entries, params(shelf, pairs=[{"content": "cat", "style": "ink"}])) == [("cat", "ink")]
