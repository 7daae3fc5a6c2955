"""FedAvgM against its paper, over several rounds."""

from __future__ import annotations

import numpy as np
import pytest

from tests.strategies.quadratic import START, Fleet, after_training, assert_close, method, two_nodes


@pytest.mark.parametrize(("momentum", "rate"), [(0.5, 1.0), (0.9, 0.25)])
def test_fedavgm_follows_its_paper(momentum: float, rate: float) -> None:
    """Against the paper's two lines in plain float64; a statistic is the nodes' mean, which momentum could make negative."""
    fleet = Fleet(method("fedavgm", momentum=momentum, server_learning_rate=rate), *two_nodes())
    weights = {name: array.astype(np.float64) for name, array in START.items()}
    velocity = {name: np.zeros(array.shape) for name, array in START.items()}
    for _ in range(5):
        fleet.run(1)
        for name, w in weights.items():
            average = (after_training(w, -1.0, 1.0) + 3 * after_training(w, 3.0, 2.0)) / 4
            velocity[name] = momentum * velocity[name] + average - w
            weights[name] = average if name.endswith("running_var") else w + rate * velocity[name]
        assert_close(fleet.sets["model"], weights)
        assert_close(fleet.sets["momentum"], velocity)


def test_without_momentum_it_is_fedavg() -> None:
    still, fedavg = Fleet(method("fedavgm", momentum=0.0), *two_nodes()), Fleet(method("fedavg"), *two_nodes())
    assert_close(still.run(3)["model"], fedavg.run(3)["model"])
