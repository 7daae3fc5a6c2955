"""Krum by hand, and against the paper's definition over several rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from federation.errors import LocalProtocolError, SettingsError
from federation.learning.algorithms import Update, build_algorithm
from federation.learning.sets import Sets
from federation.settings import parse_settings
from tests.strategies.quadratic import START, Fleet, QuadraticTrainer, after_training, assert_close, method


def central(name: str, rows: list[list[float]], share: float = 0.2) -> list[float]:
    """Return the aggregate of models of two tensors, x and y."""
    updates = [
        Update(
            node=f"n{index:02}",
            num_examples=10**index,
            sets=Sets({"model": {"x": np.array(row[:1], np.float32), "y": np.array(row[1:], np.float32)}}),
        )
        for index, row in enumerate(rows)
    ]
    algorithm = build_algorithm(name, {"faulty_share": share}, num_nodes=len(rows))
    start = Sets({"model": {"x": np.zeros(1, np.float32), "y": np.zeros(len(rows[0]) - 1, np.float32)}})
    model = algorithm.aggregate(start, updates)["model"]
    return [float(value) for name in "xy" for value in model[name]]


def test_krum_takes_the_model_nearest_to_its_neighbours() -> None:
    """Of five with one faulty, the two nearest count. Scores: 1+4, 1+1, 1+4, and far more of the two outside."""
    assert central("krum", [[0, 0], [0, 1], [0, 2], [50, 0], [0, -60]]) == [0, 1]


def test_multi_krum_takes_the_mean_of_all_but_as_many_as_may_be_faulty() -> None:
    """Scores of (0,0) to (0,3): 1+4, 1+1, 1+1, 1+4; of (50,0): about 5000."""
    assert central("multi_krum", [[0, 0], [0, 1], [50, 0], [0, 2], [0, 3]]) == [0, 1.5]


def test_colluding_nodes_are_not_chosen() -> None:
    """Of seven with two faulty, three neighbours count: two that agree with each other still need a third, far away."""
    honest: list[list[float]] = [[0, 0], [1, 0], [0, 1], [1, 1], [0.5, 0.5]]
    liars: list[list[float]] = [[1e30, 1e30], [1e30, 1e30]]
    assert central("krum", [*liars, *honest], 0.3) == [0.5, 0.5]
    assert central("multi_krum", [*honest, *liars], 0.3) == [0.5, 0.5]


def paper_order(models: list[Any], num_faulty: int) -> list[int]:
    """The definition, over whole vectors: indices by score."""
    scores = []
    for k, model in enumerate(models):
        nearest = sorted(float(((model - other) ** 2).sum()) for j, other in enumerate(models) if j != k)
        scores.append(sum(nearest[: len(models) - num_faulty - 2]))
    return sorted(range(len(models)), key=lambda k: scores[k])


@pytest.mark.parametrize("name", ["krum", "multi_krum"])
def test_over_rounds_it_follows_its_paper(name: str) -> None:
    nodes = [(-3.0, 1.0), (0.5, 1.3), (1.0, 0.7), (2.0, 2.0), (500.0, 1.0), (2.5, 0.4), (-400.0, 0.1), (1.5, 0.5)]
    trainers = [QuadraticTrainer(f"n{index}", optimum=optimum, steepness=steep) for index, (optimum, steep) in enumerate(nodes)]
    fleet = Fleet(method(name, faulty_share=0.25), *trainers)
    expected = {tensor: array.astype(np.float64) for tensor, array in START.items()}
    for _ in range(4):
        fleet.run(1)
        trained = [{tensor: after_training(w, optimum, steep) for tensor, w in expected.items()} for optimum, steep in nodes]
        order = paper_order([np.concatenate([model[tensor].ravel() for tensor in model]) for model in trained], 2)
        chosen = order[:1] if name == "krum" else order[:6]
        expected = {tensor: np.mean([trained[k][tensor] for k in chosen], axis=0) for tensor in expected}
        assert_close(fleet.sets["model"], expected)


@pytest.mark.parametrize("name", ["krum", "multi_krum"])
def test_of_fewer_than_five_no_majority_of_neighbours_is_honest(name: str) -> None:
    with pytest.raises(LocalProtocolError, match=f"{name} needs 5 updates or more, there are 4"):
        central(name, [[0.0, 0.0]] * 4)
    with pytest.raises(SettingsError, match=r"raise rounds\.min_nodes to 5"):
        parse_settings({"method": {"name": name}, "rounds": {"min_nodes": 4}})
