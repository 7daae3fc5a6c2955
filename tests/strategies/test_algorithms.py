"""Each method against numbers worked out apart from it, over several rounds."""

from __future__ import annotations

from typing import Any

import pytest

from federation.errors import SettingsError
from federation.learning.algorithms import build_algorithm
from federation.learning.sets import Sets, TensorSet
from tests.strategies.quadratic import START, Fleet, QuadraticTrainer, after_training, assert_close, method, two_nodes


def test_fedavg_is_the_mean_weighted_by_examples() -> None:
    fleet, expected = Fleet(method("fedavg"), *two_nodes()), dict(START)
    for _ in range(3):
        fleet.run(1)
        expected = {name: (after_training(w, -1.0, 1.0) + 3 * after_training(w, 3.0, 2.0)) / 4 for name, w in expected.items()}
        assert_close(fleet.sets["model"], expected)


def test_fedprox_stays_nearer_by_its_closed_form() -> None:
    """With the pull the parabola is steeper, and its lowest point lies between optimum and global model."""
    mu = 2.0
    fleet, expected = Fleet(method("fedprox", mu=mu), *two_nodes()), dict(START)
    for _ in range(3):
        fleet.run(1)
        for name, weights in expected.items():
            parts = []
            for optimum, steepness in ((-1.0, 1.0), (3.0, 2.0)):
                lowest = (steepness * optimum + mu * weights) / (steepness + mu)
                parts.append(after_training(weights, lowest, steepness + mu))
            expected = {**expected, name: (parts[0] + 3 * parts[1]) / 4}
        assert_close(fleet.sets["model"], expected)


def test_fedmedian_is_the_middle_model_whatever_its_examples() -> None:
    nodes = (*two_nodes(), QuadraticTrainer("c", optimum=1e6, num_examples=10**9))
    fleet = Fleet(method("fedmedian"), *nodes)
    fleet.run(1)
    assert_close(fleet.sets["model"], {name: after_training(w, 3.0, 2.0) for name, w in START.items()})


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        ("fedavgg", {}, "there is no method 'fedavgg'; there are .*fedavg"),
        ("fedavg", {"mu": 0.1}, r"method.mu: fedavg has no such setting"),
        ("fedprox", {"mu": -1.0}, r"method.mu: Input should be greater than or equal to 0"),
    ],
)
def test_wrong_settings_are_named(name: str, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        build_algorithm(name, settings, num_nodes=2)


def test_sets_are_not_changed_by_aggregating() -> None:
    sets = Sets({"model": TensorSet(START)})
    fleet = Fleet(method("fedavg"), *two_nodes())
    fleet.algorithm.aggregate(sets, fleet.updates())
    assert_close(sets["model"], START)
