"""Ditto against its paper, over several rounds."""

from __future__ import annotations

import numpy as np
import pytest

from tests.strategies.quadratic import START, Fleet, QuadraticTrainer, after_training, assert_close, method, start_model, two_nodes

STEPS, RATE = QuadraticTrainer.num_steps, QuadraticTrainer.learning_rate


@pytest.mark.parametrize("pull", [0.0, 0.1, 2.0])
def test_ditto_follows_its_paper(pull: float) -> None:
    """Algorithm 1 in plain float64: the pull is towards the round's global model, wherever the node's own one is."""
    fleet = Fleet(method("ditto", pull=pull), *two_nodes())
    weights = {name: array.astype(np.float64) for name, array in START.items()}
    own = {node: dict(weights) for node in "ab"}
    for _ in range(4):
        fleet.run(1)
        for name, w in weights.items():
            for node, (optimum, steepness) in {"a": (-1.0, 1.0), "b": (3.0, 2.0)}.items():
                v = own[node][name]
                for _ in range(STEPS):
                    v = v - RATE * (steepness * (v - optimum) + pull * (v - w))
                own[node][name] = v
            weights[name] = (after_training(w, -1.0, 1.0) + 3 * after_training(w, 3.0, 2.0)) / 4
        assert_close(fleet.sets["model"], weights)
        for node in "ab":
            assert_close(fleet.kept[node]["personal"], own[node])


def test_stronger_pull_ends_nearer_to_the_global_model() -> None:
    """In the end (optimum + pull * w) / (1 + pull), for a parabola of steepness 1 about -1."""
    for pull in (0.0, 0.5, 5.0):
        fleet = Fleet(method("ditto", pull=pull), *two_nodes())
        fleet.run(30)
        own, everybodys = fleet.kept["a"]["personal"]["hidden.weight"], fleet.sets["model"]["hidden.weight"]
        np.testing.assert_allclose(own - everybodys, (-1.0 - everybodys) / (1 + pull), rtol=1e-3)


def test_nodes_predict_with_their_own_model_and_the_server_with_the_global_one() -> None:
    fleet = Fleet(method("ditto"), *two_nodes())
    down = fleet.run(2)
    for node, expected in ((fleet.kept["a"], fleet.kept["a"]["personal"]), ({}, down["model"]), (None, down["model"])):
        whole = fleet.algorithm.whole_model(down, node, start_model())
        assert whole is not None
        assert_close(whole, expected)
