"""FedAdagrad against its paper, over several rounds."""

from __future__ import annotations

import numpy as np
import pytest

from tests.strategies.quadratic import START, Fleet, after_training, method, two_nodes


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_fedadagrad_follows_its_paper(beta1: float) -> None:
    """Against the algorithm as the paper prints it, in plain float64."""
    rate, tau = 0.5, 0.001
    fleet = Fleet(method("fedadagrad", server_learning_rate=rate, beta1=beta1, tau=tau), *two_nodes())
    weights = {name: array.astype(np.float64) for name, array in START.items()}
    momentum = {name: np.zeros(array.shape) for name, array in START.items()}
    squares = {name: np.full(array.shape, tau**2) for name, array in START.items()}
    for _ in range(5):
        fleet.run(1)
        for name, w in weights.items():
            average = (after_training(w, -1.0, 1.0) + 3 * after_training(w, 3.0, 2.0)) / 4
            momentum[name] = beta1 * momentum[name] + (1 - beta1) * (average - w)
            squares[name] = squares[name] + (average - w) ** 2
            weights[name] = average if name.endswith("running_var") else w + rate * momentum[name] / (np.sqrt(squares[name]) + tau)
        for name, array in fleet.sets["model"].items():
            np.testing.assert_allclose(array, weights[name], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(fleet.sets["squares"][name], squares[name], rtol=1e-4, atol=1e-6)
