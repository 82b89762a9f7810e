"""What training reads: which rows, and a digest of them."""

import dataclasses

import pandas as pd
import pytest
import torch

from b4m_pipeline.inputs.encode import encode_training_set
from b4m_pipeline.inputs.training_set import TrainingSetError


def test_no_half_is_held_back_from_its_own_token(tiny_training_set):
    others = ["snq, ink", "a SNQ toy", "a snqx toy", "a cat toy"]
    tensors = {"prompt_embeds": torch.zeros(4, 1, 1)}
    named = dataclasses.replace(tiny_training_set, others=others, other_tensors=tensors)
    assert named.others_without("snq")[0] == ["a snqx toy", "a cat toy"]


def test_the_digest_is_of_the_squares_not_of_the_files_alone(tiny_manifest, tiny_training_set, tiny_base):
    manifest, pictures = tiny_manifest
    key = manifest.picture[0]
    mirrored = encode_training_set(manifest, pictures | {key: pictures[key].transpose(0)}, tiny_base)
    assert mirrored.digest("content") != tiny_training_set.digest("content")
    assert mirrored.digest("style") == tiny_training_set.digest("style")


def test_looks_and_further_captions_of_a_held_back_picture_are_held_back_too(tiny_training_set):
    table = tiny_training_set.table
    look = table.loc[[2]].assign(picture=table.picture[2] + "+comic", caption_source="look")
    variant = table.loc[[2]].assign(caption_source="variant")
    more = dataclasses.replace(
        tiny_training_set, table=pd.concat([table.assign(caption_source="tags"), look, variant], ignore_index=True)
    )
    trained, held = more.hold_back("content", 1)
    assert trained.tolist() == [0, 1] and held.tolist() == [2]


def test_rows_are_a_roles_and_a_role_without_pictures_is_named(tiny_training_set):
    table = tiny_training_set.table
    assert table.loc[tiny_training_set.rows("style").tolist(), "concept"].tolist() == ["ink"] * 3
    assert tiny_training_set.has("style") and not tiny_training_set.has("union")
    with pytest.raises(TrainingSetError, match="no pictures in the role 'union'"):
        tiny_training_set.rows("union")


def test_what_is_left_out_leaves_rows_and_tensors_together(tiny_training_set):
    table = tiny_training_set.table
    sources = ["variant" if row % 2 else "tags" for row in range(len(table))]
    marked = dataclasses.replace(tiny_training_set, table=table.assign(caption_source=sources))
    for left, wanted in (
        (marked.without("content", "style"), table.role.str.startswith("counterpart")),
        (marked.without_variants(), pd.Series(sources) == "tags"),
    ):
        assert left.table["picture"].tolist() == table.loc[wanted, "picture"].tolist()
        assert left.table.index.tolist() == list(range(len(left.table)))
        for key, value in tiny_training_set.tensors.items():
            assert torch.equal(left.tensors[key], value[wanted.to_numpy(copy=True)])
    assert tiny_training_set.without_variants().table.equals(table)  # one that does not know where its captions are from


def test_at_least_one_picture_is_trained_on(tiny_training_set):
    trained, held = tiny_training_set.hold_back("style", 0)
    assert trained.tolist() == tiny_training_set.rows("style").tolist() and held.tolist() == []
    with pytest.raises(TrainingSetError, match=r"validation\.pictures is 3, and style has 3: at least one"):
        tiny_training_set.hold_back("style", 3)


def test_preservation_needs_prompts_that_differ(tiny_training_set):
    others = ["a cat", "a snq", "a dog"]
    tensors = {"prompt_embeds": torch.arange(3.0).view(3, 1, 1)}
    named = dataclasses.replace(tiny_training_set, others=others, other_tensors=tensors)
    prompts, encoded = named.others_without("snq")
    assert prompts == ["a cat", "a dog"] and encoded["prompt_embeds"].flatten().tolist() == [0, 2]
    with pytest.raises(TrainingSetError, match="preservation needs prompts without 'cat'"):
        dataclasses.replace(named, others=others[:2]).others_without("cat")


def test_another_concept_or_token_is_refused_by_name(tiny_training_set):
    tiny_training_set.require("content", "cup", "snq")
    with pytest.raises(TrainingSetError, match=r"content is 'cup' \(snq\), 'mug' \(snq\) is wanted: run the ingestion"):
        tiny_training_set.require("content", "mug", "snq")
    with pytest.raises(TrainingSetError, match=r"'cup' \(other\) is wanted"):
        tiny_training_set.require("content", "cup", "other")


@pytest.mark.parametrize("column", ["caption", "pixels", "sha256", "concept"])
def test_the_digest_knows_what_decides_and_nothing_else(tiny_training_set, column):
    table, own = tiny_training_set.table, tiny_training_set.digest("content")
    changed = table.copy()
    changed.loc[0, column] = "another"
    assert dataclasses.replace(tiny_training_set, table=changed).digest("content") != own
    assert dataclasses.replace(tiny_training_set, table=changed).digest("style") == tiny_training_set.digest("style")
    assert dataclasses.replace(tiny_training_set, table=table.assign(licence="CC0-1.0")).digest("content") == own
    assert dataclasses.replace(tiny_training_set, encoder="other").digest("content") != own


def test_provenance_counts_a_file_once_by_its_licence(tiny_training_set):
    table = tiny_training_set.table
    twice = pd.concat([table, table.loc[[0]].assign(caption_source="look")], ignore_index=True)
    licences = ["CC0-1.0", "CC-BY-4.0", "CC0-1.0", *["unknown"] * (len(twice) - 3)]
    named = dataclasses.replace(tiny_training_set, table=twice.assign(licence=licences))
    found = named.provenance("content", "union")
    assert found == {"content": {"number": 3, "licences": {"CC-BY-4.0": 1, "CC0-1.0": 2}, "sha256": ["00", "01", "02"]}}
