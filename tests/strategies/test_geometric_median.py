"""The geometric median where it is known, and against plain steps in coordinates."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest

from federation.errors import LocalProtocolError
from federation.learning.algorithms import Update, build_algorithm
from federation.learning.sets import Sets
from tests.strategies.quadratic import START, Fleet, QuadraticTrainer, after_training, method

MEDIAN = build_algorithm("geometric_median", {}, num_nodes=3)


def median(*points: tuple[float, ...]) -> Any:
    """Return the aggregate of models of two tensors, x and y."""
    updates = [
        Update(
            node=f"n{index:02}",
            num_examples=10**index,
            sets=Sets({"model": {"x": np.array(point[:1], np.float32), "y": np.array(point[1:], np.float32)}}),
        )
        for index, point in enumerate(points)
    ]
    start = Sets({"model": {"x": np.zeros(1, np.float32), "y": np.zeros(len(points[0]) - 1, np.float32)}})
    model = MEDIAN.aggregate(start, updates)["model"]
    return np.concatenate([model["x"], model["y"]])


def test_of_a_triangle_it_is_fermats_point() -> None:
    """From it, every pair of corners is seen under 120 degrees: above a base of 2, at a third of the equilateral height."""
    np.testing.assert_allclose(median((-1, 0), (1, 0), (0, 5)), [0, 1 / sqrt(3)], atol=1e-6)


def test_of_a_convex_quadrilateral_it_is_where_the_diagonals_cross() -> None:
    np.testing.assert_allclose(median((0, 0), (4, 0), (3, 3), (0, 2)), [12 / 9, 12 / 9], atol=1e-6)


def test_of_a_triangle_with_a_wide_corner_it_is_that_corner() -> None:
    np.testing.assert_allclose(median((0, 0), (10, 0.5), (-10, 0.5)), [0, 0], atol=1e-2)


def test_where_most_agree_it_is_theirs() -> None:
    np.testing.assert_allclose(median((2, 3, 4), (2, 3, 4), (2, 3, 4), (-7, 9, 100), (0, 0, 1e30)), [2, 3, 4], rtol=1e-6)
    np.testing.assert_allclose(median((2, 3), (2, 3), (2, 3)), [2, 3])


@pytest.mark.parametrize("reach", [1e3, 1e12, 1e30])
def test_how_far_away_a_mad_node_is_makes_no_difference(reach: float) -> None:
    """Two of five are mad: what matters is the direction in which they pull."""
    honest = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]
    found = median(*honest, (reach, reach), (reach, reach))
    nearer = median(*honest, (1e4, 1e4), (1e4, 1e4))
    np.testing.assert_allclose(found, nearer, atol=2e-2)
    assert np.abs(found).max() < 2


def plain_weiszfeld(points: Any) -> Any:
    """Weiszfeld's steps in coordinates, from the mean, to the end; no point is met on the way."""
    at = points.mean(axis=0)
    for _ in range(5000):
        pulls = 1 / np.linalg.norm(points - at, axis=1)
        at = (points * pulls[:, None]).sum(axis=0) / pulls.sum()
    return at


def test_over_rounds_it_follows_its_paper() -> None:
    nodes = [(-1.0, 1.0), (3.0, 2.0), (0.5, 0.3), (8.0, 0.7), (-6.0, 1.6), (2.0, 3.5)]
    fleet = Fleet(method("geometric_median"), *(QuadraticTrainer(f"n{i}", optimum=best, steepness=s) for i, (best, s) in enumerate(nodes)))
    expected = np.concatenate([START[name].astype(np.float64).ravel() for name in sorted(START)])
    for _ in range(4):
        fleet.run(1)
        expected = plain_weiszfeld(np.stack([after_training(expected, optimum, steepness) for optimum, steepness in nodes]))
        found = np.concatenate([fleet.sets["model"][name].ravel() for name in sorted(START)])
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("points", [[(0.0, 1.0)], [(0.0, 1.0), (1.0, 0.0)]])
def test_of_fewer_than_three_any_point_between_would_do(points: list[tuple[float, float]]) -> None:
    with pytest.raises(LocalProtocolError, match="geometric_median needs 3 updates or more"):
        median(*points)
