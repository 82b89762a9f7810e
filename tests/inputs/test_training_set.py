"""What training reads: which rows, and a digest of them."""

import dataclasses

import pandas as pd
import torch

from b4m_pipeline.inputs.encode import encode_training_set


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
