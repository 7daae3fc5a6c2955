"""FedYogi against its paper, over several rounds."""

from __future__ import annotations

import numpy as np
import pytest

from tests.strategies.quadratic import START, Fleet, after_training, method, two_nodes


@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_fedyogi_follows_its_paper(rate: float) -> None:
    """Against the algorithm as the paper prints it, in plain float64."""
    beta1, beta2, tau = 0.9, 0.5, 0.001
    fleet = Fleet(method("fedyogi", server_learning_rate=rate, beta1=beta1, beta2=beta2, tau=tau), *two_nodes())
    weights = {name: array.astype(np.float64) for name, array in START.items()}
    momentum = {name: np.zeros(array.shape) for name, array in START.items()}
    variance = {name: np.full(array.shape, tau**2) for name, array in START.items()}
    has_fallen = False
    for _ in range(6):
        fleet.run(1)
        for name, w in weights.items():
            average = (after_training(w, -1.0, 1.0) + 3 * after_training(w, 3.0, 2.0)) / 4
            delta, before = average - w, variance[name]
            momentum[name] = beta1 * momentum[name] + (1 - beta1) * delta
            variance[name] = np.where(before > delta**2, before - (1 - beta2) * delta**2, before + (1 - beta2) * delta**2)
            has_fallen |= bool((variance[name] < before).any())
            weights[name] = average if name.endswith("running_var") else w + rate * momentum[name] / (np.sqrt(variance[name]) + tau)
        for name, array in fleet.sets["model"].items():
            np.testing.assert_allclose(array, weights[name], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(fleet.sets["variance"][name], variance[name], rtol=1e-4, atol=1e-6)
    assert has_fallen, "a variance that only rises would not tell Yogi from a sum"
