"""What is drawn to be measured."""

import numpy as np

from b4m_pipeline.evaluation.samples import BASE, KNOWN, known_requests


def test_known_things_are_asked_of_the_base_once_each_with_two_seeds():
    requests = known_requests(["a cat", None, "a cat", "a dog"], 6, 7)
    assert [(r.prompt, r.seed) for r in requests] == [("a cat", 7), ("a cat", 8), ("a dog", 7), ("a dog", 8)]
    assert {(r.system, r.kind) for r in requests} == {(BASE, KNOWN)}
    assert len(known_requests([f"thing {n}" for n in range(20)], 6, 0)) == 12  # a few tell enough
    assert known_requests([None], 6, 0) == []


def test_systems_draw_different_pictures(evaluated):
    pictures, table = evaluated
    composed = table[table.kind == "composition"].groupby("seed").picture.apply(list)
    for keys in composed:
        drawn = [np.asarray(pictures[key], float) for key in keys]
        assert len(drawn) == 3
        assert all(np.abs(drawn[i] - drawn[j]).max() > 2 for i in range(3) for j in range(i))
