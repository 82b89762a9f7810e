"""What stands beside an adapter, and what is given in an adapter's place."""

import json

import pytest

from b4m_pipeline.common.provenance import file_digest
from b4m_pipeline.inputs.params import ConceptParams
from b4m_pipeline.library.params import LibraryParams
from b4m_pipeline.library.table import LibraryError, read_table
from b4m_pipeline.method.adapter import URI_KEY, WEIGHTS_NAME, AdapterError
from b4m_pipeline.registry.adapters import RECORD_NAME, RegistrationError, adapter_uri, fetch_adapter
from tests.hostile.helpers import is_one_line, whole, write

RECORDS = {
    "empty": b"",
    "half written": b'{"name": "b4m-ma',
    "a list": b"[]",
    "a number": b"5",
    "null": b"null",
    "no mapping inside": b'{"uri": {"a": 1}, "sha256": "0"}',
    "no digest": b'{"uri": "models:/x/1"}',
    "no version": b'{"sha256": "0"}',
    "a path": b'{"uri": "../../x", "sha256": "0"}',
    "an address": b'{"uri": "http://127.0.0.1/x", "sha256": "0"}',
    "two lines": b'{"uri": "models:/x/1\\nERROR", "sha256": "0"}',
    "a quote": b'{"uri": "models:/x\' or 1/1 ", "sha256": "0"}',
    "cp1252": '{"uri": "models:/käfer/1"'.encode("cp1252"),
    "NUL": b"\0\0\0\0",
    "nested": b"[" * 100_000,
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_record_is_an_error_of_its_own(tmp_path, name) -> None:
    (write(whole(), tmp_path) / RECORD_NAME).write_bytes(RECORDS[name])
    for read in (adapter_uri, lambda folder: fetch_adapter(str(folder))):
        with pytest.raises(
            RegistrationError, match=r"registered\.json is damaged .*: remove it, and .*kedro register"
        ) as error:
            read(tmp_path)
        assert is_one_line(str(error.value))


def test_a_record_of_these_weights_is_read(tmp_path) -> None:
    record = {"uri": "models:/b4m-make-cup-ink/7", "sha256": file_digest(write(whole(), tmp_path) / WEIGHTS_NAME)}
    (tmp_path / RECORD_NAME).write_text(json.dumps(record))
    assert fetch_adapter(str(tmp_path)).metadata[URI_KEY] == "models:/b4m-make-cup-ink/7"


@pytest.mark.parametrize(
    "source",
    ["runs:/0123/made", "http://127.0.0.1:9/x", "https://example.invalid/x", "file:///etc", "s3://bucket/x",
     "mlflow-artifacts:/x", "dbfs:/x", "models:", "models:/", "models:/x", "models:/x/", "models:/x@",
     "models:/x/latest", "models:/x/1/code",
     "models://x/1", "models:/x y/1", "models:/x/-1", "models:/x/1\nERROR", "models:/m-0123", "models:/x@a@b"],
)  # fmt: skip
def test_what_is_no_adapters_place_is_said(source) -> None:
    with pytest.raises(
        RegistrationError, match="names no (adapter|version): give models:/NAME@ALIAS, models:/NAME/VERSION"
    ) as error:
        fetch_adapter(source)
    assert is_one_line(str(error.value))


@pytest.mark.parametrize(
    "source",
    ["nowhere", "./runs:/x", "~nobody-here/x", "x" * 200, "C:\\adapters\\made", ".", "a\0b", "x" * 300, "", "a/" * 3000],
)
def test_folders_without_an_adapter_are_said(source, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AdapterError, match="No adapter at") as error:
        fetch_adapter(source)
    assert is_one_line(str(error.value))


TABLES = {
    "no table.csv": None,
    "empty.csv": b"",
    "cp1252.csv": "kind,path\ncontent,käfer\n".encode("cp1252"),
    "nul.csv": b"kind,path\ncontent,a\0b\n",
    "wide.csv": b"kind,path\ncontent,a,b,c\n",
    "open.csv": b'kind,path\ncontent,"a\n',
    "long.csv": b"kind,path\ncontent," + b"x" * 200_000 + b"\n",
    "part.csv": b"kind,path\ncontent," + b"x" * 300 + b"\n",
    "escape.csv": b"kind,path,noun\ncontent,a,\x1b[2J\n",
    "lines.csv": b'kind,path,name\ncontent,a,"cup\nERROR"\n',
    "column.csv": b"kind,path,__class__\ncontent,a,b\n",
    "kind.csv": b"kind,path\n" + b"y" * 5000 + b",a\n",
    "home.csv": b"kind,path\ncontent,~nobody-here/x\n",
    "nowhere.csv": b"kind,path\ncontent,nowhere\n",
    "open.yml": b"- {kind: content, path: [\n",
    "tag.yml": b"- !!python/object/apply:os.system [true]\n",
    "tab.yml": b"-\n\tkind: content\n",
    "text.yml": b"hello",
    "numbers.yml": b"[1, 2]",
    "deep.yml": b"[" * 5000,
    "mapping.yml": b"kind: content\n",
    "nested.yml": b"- {kind: content, path: {a: b}}\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_librarys_table_that_cannot_be_read_is_one_line(tmp_path, name) -> None:
    if TABLES[name] is not None:
        (tmp_path / name).write_bytes(TABLES[name])
    concept = ConceptParams(path="any", token="snq")
    with pytest.raises(LibraryError) as error:
        read_table(LibraryParams(table=str(tmp_path / name), pairs="all", folder=str(tmp_path)), concept, concept)
    assert name in str(error.value) and is_one_line(str(error.value))
