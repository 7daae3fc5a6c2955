"""Trimmed mean by hand."""

from __future__ import annotations

import numpy as np
import pytest

from federation.errors import LocalProtocolError
from federation.learning.algorithms import Update, build_algorithm
from federation.learning.sets import Sets
from tests.strategies.quadratic import START, Fleet, QuadraticTrainer, after_training, assert_close, method


def trimmed(rows: list[list[float]], share: float) -> list[float]:
    updates = [
        Update(node=f"n{index:02}", num_examples=10**index, sets=Sets({"model": {"w": np.array(row, dtype=np.float32)}}))
        for index, row in enumerate(rows)
    ]
    algorithm = build_algorithm("trimmed_mean", {"faulty_share": share}, num_nodes=len(rows))
    after = algorithm.aggregate(Sets({"model": {"w": np.zeros(len(rows[0]), dtype=np.float32)}}), updates)
    return [float(value) for value in after["model"]["w"]]


def test_of_three_the_middle_one_whatever_the_share() -> None:
    assert trimmed([[1, 9], [2, 8], [30, -7]], 0.01) == [2, 8]
    assert trimmed([[1, 9], [2, 8], [30, -7]], 0.49) == [2, 8]


def test_a_share_is_left_out_at_either_end() -> None:
    """Of ten: with a fifth the mean of the middle six, with less than a tenth that of the middle eight."""
    rows: list[list[float]] = [[value] for value in (0, 1, 2, 3, 4, 6, 8, 10, 100, 1000)]
    assert trimmed(rows, 0.2) == [pytest.approx((2 + 3 + 4 + 6 + 8 + 10) / 6)]
    assert trimmed(rows, 0.05) == [pytest.approx((1 + 2 + 3 + 4 + 6 + 8 + 10 + 100) / 8)]


def test_as_many_mad_nodes_as_are_cut_move_nothing_beyond_the_others() -> None:
    honest: list[list[float]] = [[1, 2], [2, 3], [3, 4], [2, 1], [1, 1]]
    (first, second) = trimmed([*honest, [1e30, -1e30], [1e30, 1e30]], 0.3)
    assert 1 <= first <= 3
    assert 1 <= second <= 4


def test_over_rounds_it_is_the_mean_of_the_middle() -> None:
    """Five parabolas of one steepness: their order never changes, so the middle three are the same every round."""
    optima = (-100.0, 1.0, 2.0, 4.0, 1e6)
    fleet = Fleet(method("trimmed_mean"), *(QuadraticTrainer(f"n{i}", optimum=optimum) for i, optimum in enumerate(optima)))
    expected = dict(START)
    for _ in range(3):
        fleet.run(1)
        expected = {name: np.mean([after_training(w, optimum, 1.0) for optimum in optima[1:4]], axis=0) for name, w in expected.items()}
        assert_close(fleet.sets["model"], expected)


@pytest.mark.parametrize("num_updates", [1, 2])
def test_of_fewer_than_three_nothing_would_be_left(num_updates: int) -> None:
    with pytest.raises(LocalProtocolError, match="trimmed_mean needs 3 updates or more"):
        trimmed([[1.0]] * num_updates, 0.2)
