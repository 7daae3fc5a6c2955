"""SCAFFOLD against its paper, over several rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.strategies.quadratic import Fleet, QuadraticTrainer, method, two_nodes

STEPS, RATE = QuadraticTrainer.num_steps, QuadraticTrainer.learning_rate


def scaffold_by_hand(num_rounds: int, *, eta_g: float, num_nodes: int, cohorts: list[list[int]]) -> list[Any]:
    """Algorithm 1 with option II for one coordinate that starts at 0.5, in plain float64; returns x and c of every round."""
    optima, steepness, counts = [-1.0, 3.0], [1.0, 2.0], [1, 3]
    x, c, own = 0.5, 0.0, [0.0, 0.0]
    history = []
    for round_index in range(num_rounds):
        changes, controls, weights = [], [], []
        for i in cohorts[round_index]:
            y = x
            for _ in range(STEPS):
                y = y - RATE * (steepness[i] * (y - optima[i]) - own[i] + c)
            new = own[i] - c + (x - y) / (STEPS * RATE)
            changes.append(y - x)
            controls.append(new - own[i])
            weights.append(counts[i])
            own[i] = new
        x = x + eta_g * float(np.average(changes, weights=weights))
        c = c + len(controls) / num_nodes * float(np.mean(controls))
        history.append((x, c))
    return history


@pytest.mark.parametrize(("eta_g", "num_nodes"), [(1.0, 2), (0.5, 4)])
def test_scaffold_follows_its_paper(eta_g: float, num_nodes: int) -> None:
    cohorts = [[0, 1], [1], [0, 1], [0], [0, 1]]
    expected = scaffold_by_hand(5, eta_g=eta_g, num_nodes=num_nodes, cohorts=cohorts)
    fleet = Fleet(method("scaffold", server_learning_rate=eta_g, num_nodes=num_nodes), *two_nodes())
    for cohort, (x, c) in zip(cohorts, expected, strict=True):
        fleet.run(1, *("ab"[index] for index in cohort))
        assert fleet.sets["model"]["output.weight"][0, 0] == pytest.approx(x, rel=1e-5)
        assert fleet.sets["control"]["output.weight"][0, 0] == pytest.approx(c, rel=1e-5, abs=1e-6)


def test_scaffold_reaches_the_optimum_that_fedavg_misses() -> None:
    """Two parabolas of different steepness: FedAvg's resting point is not the optimum of their sum, SCAFFOLD's is."""
    nodes = QuadraticTrainer("a", optimum=-1.0), QuadraticTrainer("b", optimum=3.0, steepness=4.0)
    optimum = (-1.0 * 1 + 3.0 * 4) / 5
    scaffold, fedavg = Fleet(method("scaffold"), *nodes), Fleet(method("fedavg"), *nodes)
    for fleet in (scaffold, fedavg):
        fleet.run(60)
    np.testing.assert_allclose(scaffold.sets["model"]["hidden.weight"], optimum, atol=1e-4)
    assert abs(fedavg.sets["model"]["hidden.weight"] - optimum).min() > 0.1
