"""FedDyn against its paper, over several rounds."""

from __future__ import annotations

import numpy as np
import pytest

from tests.strategies.quadratic import Fleet, QuadraticTrainer, method, two_nodes

STEPS, RATE = QuadraticTrainer.num_steps, QuadraticTrainer.learning_rate


@pytest.mark.parametrize(("alpha", "num_nodes"), [(0.5, 2), (0.1, 3)])
def test_feddyn_follows_its_paper(alpha: float, num_nodes: int) -> None:
    """Algorithm 1 for one coordinate that starts at 0.5, in plain float64, with nodes that miss rounds."""
    cohorts = [[0, 1], [1], [0, 1], [0], [0, 1]]
    optima, steepness = [-1.0, 3.0], [1.0, 2.0]
    w, h, g = 0.5, 0.0, [0.0, 0.0]
    fleet = Fleet(method("feddyn", alpha=alpha, num_nodes=num_nodes), *two_nodes())
    for cohort in cohorts:
        fleet.run(1, *("ab"[index] for index in cohort))
        trained = []
        for k in cohort:
            y = w
            for _ in range(STEPS):
                y = y - RATE * (steepness[k] * (y - optima[k]) - g[k] + alpha * (y - w))
            g[k] = g[k] - alpha * (y - w)
            trained.append(y)
        h = h - alpha / num_nodes * sum(y - w for y in trained)
        w = sum(trained) / len(trained) - h / alpha
        assert fleet.sets["model"]["output.weight"][0, 0] == pytest.approx(w, rel=1e-5, abs=1e-6)
        assert fleet.sets["correction"]["output.weight"][0, 0] == pytest.approx(h, rel=1e-5, abs=1e-6)
        for k in cohort:
            assert fleet.kept["ab"[k]]["gradient"]["output.weight"][0, 0] == pytest.approx(g[k], rel=1e-5, abs=1e-6)


def test_feddyn_reaches_the_optimum_that_fedavg_misses() -> None:
    """Two parabolas of different steepness: FedAvg's resting point is not the optimum of their sum, FedDyn's is."""
    nodes = QuadraticTrainer("a", optimum=-1.0), QuadraticTrainer("b", optimum=3.0, steepness=4.0)
    optimum = (-1.0 * 1 + 3.0 * 4) / 5
    feddyn, fedavg = Fleet(method("feddyn", alpha=2.0), *nodes), Fleet(method("fedavg"), *nodes)
    for fleet in (feddyn, fedavg):
        fleet.run(150)
    np.testing.assert_allclose(feddyn.sets["model"]["hidden.weight"], optimum, atol=1e-3)
    assert abs(fedavg.sets["model"]["hidden.weight"] - optimum).min() > 0.1


def test_statistics_are_averaged_whatever_the_correction() -> None:
    algorithm = method("feddyn", alpha=0.1)
    fleet = Fleet(algorithm, *two_nodes())
    fleet.run(2)
    updates = fleet.updates()
    after = algorithm.aggregate(fleet.sets, updates)["model"]["norm.running_var"]
    np.testing.assert_allclose(after, np.mean([update.sets["model"]["norm.running_var"] for update in updates], axis=0), rtol=1e-6)
