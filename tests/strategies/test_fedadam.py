"""FedAdam against its paper, over several rounds."""

from __future__ import annotations

import numpy as np

from tests.strategies.quadratic import START, Fleet, after_training, method, two_nodes


def test_fedadam_follows_its_paper() -> None:
    """Against the algorithm as the paper prints it, in plain float64."""
    rate, beta1, beta2, tau = 0.1, 0.9, 0.99, 0.001
    fleet = Fleet(method("fedadam", server_learning_rate=rate, beta1=beta1, beta2=beta2, tau=tau), *two_nodes())
    weights = {name: array.astype(np.float64) for name, array in START.items()}
    momentum = {name: np.zeros(array.shape) for name, array in START.items()}
    variance = {name: np.full(array.shape, tau**2) for name, array in START.items()}
    for _ in range(5):
        fleet.run(1)
        for name, w in weights.items():
            average = (after_training(w, -1.0, 1.0) + 3 * after_training(w, 3.0, 2.0)) / 4
            momentum[name] = beta1 * momentum[name] + (1 - beta1) * (average - w)
            variance[name] = beta2 * variance[name] + (1 - beta2) * (average - w) ** 2
            is_statistic = name.endswith("running_var")
            weights[name] = average if is_statistic else w + rate * momentum[name] / (np.sqrt(variance[name]) + tau)
        for name, array in fleet.sets["model"].items():
            np.testing.assert_allclose(array, weights[name], rtol=1e-4, atol=1e-4)
        assert set(fleet.sets) == {"model", "momentum", "variance"}
        assert (fleet.sets["variance"]["norm.running_var"] > 0).all()
