"""The benchmark of the registry: that its copies are what registering writes."""

import sqlalchemy as sa
from benchmarks._adapters import random_pair, tiny_frame

from b4m_pipeline.method.files import save_adapter
from b4m_pipeline.registry.adapters import fetch_adapter, find_joined, register_adapter
from b4m_pipeline.registry.listing import find_adapters
from benchmarks import registry

REGISTERED = "b4m-joined-cup-ink"


def shape(original: registry.Original) -> dict[str, set]:
    """Table -> which of its columns are set, and under which key, for each row."""
    told: dict[str, set] = {}
    for table, rows in original.rows:
        keys = [column.name for column in table.columns if column.name in ("key", "tag_key", "param_key", "alias")]
        told[table.name] = {(*(row[key] for key in keys), *(c for c, v in row.items() if v is not None)) for row in rows}
    return told


def test_a_copy_has_the_rows_of_an_adapter_that_was_registered(tracking, store, tiny_base, tmp_path) -> None:
    adapters = registry.register_originals(tmp_path, tiny_base)
    save_adapter(random_pair("cup", "ink", tiny_frame(tiny_base), tiny_base), tmp_path / "real")
    register_adapter(tmp_path / "real", inference=registry.INFERENCE)
    engine = sa.create_engine(store)
    original = registry.read_original(engine, adapters[2])
    real = registry.read_original(engine, fetch_adapter(f"models:/{REGISTERED}@candidate"))
    registry.fill(engine, original, [{registry.CONTENT: "hat", registry.STYLE: f"oil{number}"} for number in range(2)], 0)
    copied = fetch_adapter("models:/b4m-joined-hat-oil1@candidate")
    copied_rows = registry.read_original(engine, copied)
    assert {"runs", "logged_models", "inputs", "registered_models", "model_versions", "model_version_tags"} <= set(shape(real))
    tags = [own["model_version_tags"] for own in (shape(copied_rows), shape(original))]
    assert shape(copied_rows) == shape(original) and {row[0] for row in tags[0]} >= {"parents", "recipe_digest", "frame"}
    assert {name: rows for name, rows in shape(real).items() if "tags" not in name} == {
        name: rows for name, rows in shape(original).items() if "tags" not in name
    }
    entries = {entry.name: entry for entry in find_adapters(concept="hat")}
    assert set(entries) == {"b4m-joined-hat-oil0", "b4m-joined-hat-oil1"}
    entry = entries["b4m-joined-hat-oil1"]
    assert entry.aliases == ("candidate",) and "original" not in f"{entry.about} {entry.description}"
    assert find_joined(entry.about["recipe_digest"]).metadata["registry_uri"] == "models:/b4m-joined-hat-oil1/1"


def test_the_table_has_a_column_for_each_size() -> None:
    found = {100: {"list": (0.5, 0.25, 7.0)}, 10_000: {"list": (0.75, 0.5, 7.0)}}
    assert registry.table(found, False).splitlines()[2] == "| list | 0.50 (0.25; 7) | 0.75 (0.50; 7) |"
    assert registry.table(found, True).splitlines()[::2] == ["| | 100 | 10,000 |", "| list | 0.50 | 0.75 |"]


def test_pairs_are_all_different_and_soon_of_many_contents() -> None:
    pairs = [tuple(words.values()) for words in registry.pairs_named(6, 4)]
    assert len(set(pairs)) == 24 and len({content for content, _ in pairs[:6]}) == 6
