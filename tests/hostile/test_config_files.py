"""Configuration files and --params that are half right: one line with the file, the place and the cure."""

import click
import pytest

from b4m_pipeline.cli import read_params, run
from b4m_pipeline.context import ConfigError
from tests.hostile.helpers import is_one_line
from tests.test_context import loader

PARAMS = next(option for option in run.params if option.name == "params")
FILES = {
    "a tab": ("make:\n\tsteps: 3\n", "line 2, column 1: no valid YAML", "a tab stands there, indent with blanks"),
    "cp1252": ("seed: 0\na: {noun: Käfer}\n".encode("cp1252"), "line 2: byte 0xe4 is no UTF-8 text", "save the file as UTF-8"),
    "UTF-16": ("seed: 0\n".encode("utf-16"), "line 1: byte 0xff is no UTF-8 text", "save the file as UTF-8"),
    "a tag": ("content: {noun: !word cup}\n", "line 1, column 17", "could not determine a constructor"),
    "a Python tag": ("a: !!python/object/apply:os.system [true]\n", "line 1, column 4", "could not determine a constructor"),
    "a brace": ("a: {content} b\n", "line 1, column 14", "put text that holds one of"),
    "an open bracket": ("a: [1, 2\nb: 3\n", "line 2, column 2", "no valid YAML"),
    "an at": ("a: @b\n", "line 1, column 4", "put text that holds one of"),
    "a star": ("a: *b\n", "line 1, column 4", "undefined alias"),
    "a percent": ("a: %b\n", "line 1, column 4", "put text that holds one of"),
    "a back quote": ("a: `b`\n", "line 1, column 4", "put text that holds one of"),
    "a colon": ("a: b: c\n", "line 1, column 5", "mapping values are not allowed"),
    "an open quote": ('a: "b\n', "line 2, column 1", "found unexpected end of stream"),
    "a key twice": ("a: 1\na: 2\n", "line 2, column 1", "found duplicate key a"),
    "NUL": ("a: b\0c\n", "parameters.yml: no valid YAML", "unacceptable character"),
    "an escape": ("a: \x1b[2J\n", "parameters.yml: no valid YAML", "unacceptable character"),
    "a list": ("- a\n- b\n", "parameters.yml must be a mapping", "NAME: VALUE"),
    "nested": ("a: " + "[" * 5000 + "]" * 5000, "parameters.yml", "no valid YAML"),
    "an unknown name": ("a: ${nobody}\n", "parameters cannot be put together", "a: Interpolation key 'nobody' not found"),
    "an unknown resolver": ("a: ${foo:b}\n", "parameters cannot be put together", "Unsupported interpolation type foo"),
    "a circle": ("a: ${b}\nb: ${a}\n", "parameters cannot be put together", "a: "),
    "a value to be given": ("a: ${b}\nb: ???\n", "parameters cannot be put together", "b"),
    "half a reference": ("a: ${b\n", "parameters.yml", "no viable alternative|mismatched|missing|extraneous"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, name) -> None:
    content, place, said = FILES[name]
    with pytest.raises(ConfigError, match=said if "|" in said else None) as error:
        loader(tmp_path, parameters=content)["parameters"]
    message = str(error.value)
    assert ("quotation marks" in message) <= (name not in ("a tag", "a Python tag", "a key twice", "a star"))
    assert place in message and ("|" in said or said in message) and is_one_line(message)


@pytest.mark.parametrize(
    ("text", "said"),
    [("content.token=@x", """--params='content.token="@x"'"""), ("content.token=*x", """--params='content.token="*x"'"""),
     ("a={content} b", """--params='a="{content} b"'"""), ("a={x", """--params='a="{x"'"""), ("a=%x", """--params='a="%x"'"""),
     ("a=!x y", """--params='a="!x y"'"""), ("a=`x`", """--params='a="`x`"'"""), ("a=b: c: d", """--params='a="b: c: d"'"""),
     ("a=[b", """--params='a="[b"'"""), ('a="b', "cannot be read"), ("a=it's @,b=@x", """--params='b="@x"'"""),
     ("a", "is no KEY=VALUE"), ("=b", "is no KEY=VALUE"), ("a=b,c", "is no KEY=VALUE"), ("a,b=c", "is no KEY=VALUE"),
     ("a=b\0c", "holds a control character"), ('a="\x1b[2J"', "holds a control character"),
     ("a=\tb", "holds a control character"), ("x" * 9000, "is no KEY=VALUE"), ("a=" + "[" * 5000, "cannot be read")],
    ids=lambda value: value[:30],
)  # fmt: skip
def test_params_that_cannot_be_read_are_one_line(text, said) -> None:
    with pytest.raises(click.ClickException) as error:
        read_params(click.Context(run), PARAMS, text)
    assert said in error.value.message and "\n" not in error.value.message


@pytest.mark.parametrize(
    ("text", "read"),
    [('content.token="@x"', {"content": {"token": "@x"}}), ('a="b, c",d=2', {"a": "b, c", "d": 2}),
     ("a=[b,c],d=x", {"a": ["b", "c"], "d": "x"}),
     ("a={b: 1,c: 2}", {"a": {"b": 1, "c": 2}}), ("a=data/{content}-{style}", {"a": "data/{content}-{style}"}),
     ("a=it's,b=5", {"a": "it's", "b": 5}), (" a = x y , b=", {"a": "x y", "b": None}), ("", {}), (",,", {}),
     ("a.b.c=1,a.b.d=2", {"a": {"b": {"c": 1, "d": 2}}})],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_params_that_are_quoted_are_read(text, read) -> None:
    assert read_params(click.Context(run), PARAMS, text) == read
