"""Names of checkpoints: who writes, resumes and tidies up finds the same files."""

import os
from pathlib import Path

from b4m_pipeline.training.checkpoint_files import checkpoint_file, checkpoint_files, finished_checkpoints, other_checkpoints

ONE, TWO = "0123456789abcdef", "fedcba9876543210"


def test_each_recipe_has_files_of_its_own_beside_each_other():
    told = checkpoint_file(Path("x"), "content_break", "cup")
    under_way, done = checkpoint_files(told, ONE)
    assert told == Path("x/content_break-cup.safetensors")
    assert under_way == Path(f"x/content_break-cup-{ONE}.safetensors")
    assert done == Path(f"x/content_break-cup-{ONE}.done.safetensors")
    assert not {under_way, done} & set(checkpoint_files(told, TWO))


def test_others_are_those_of_the_same_stage_and_concept_alone(tmp_path):
    told = checkpoint_file(tmp_path, "content_break", "cup")
    own = [*checkpoint_files(told, ONE), checkpoint_files(told, TWO)[0]]
    strangers = [
        *checkpoint_files(checkpoint_file(tmp_path, "content_break", "cup-blue"), ONE),
        *checkpoint_files(checkpoint_file(tmp_path, "style_break", "cup"), ONE),
        told,  # without a fingerprint
    ]
    for file in (*own, *strangers):
        file.touch()
    assert other_checkpoints(told) == sorted(own)


def test_finished_ones_are_listed_by_age_and_those_under_way_are_not(tmp_path):
    files = [checkpoint_files(checkpoint_file(tmp_path, "content_break", name), ONE) for name in ("a", "b", "c")]
    stranger = checkpoint_files(checkpoint_file(tmp_path, "joint_make", "a"), ONE)[1]
    for age, (under_way, done) in zip((1, 3, 2), files, strict=True):
        for file in (under_way, done):
            file.touch()
            os.utime(file, ns=(0, 10**18 - age))
    stranger.touch()
    assert finished_checkpoints(tmp_path, "content_break") == [files[1][1], files[2][1], files[0][1]]
    assert finished_checkpoints(tmp_path / "none", "content_break") == []
