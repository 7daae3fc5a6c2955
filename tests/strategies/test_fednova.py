"""FedNova against its paper, over several rounds."""

from __future__ import annotations

import numpy as np
import pytest

from federation.learning.algorithms import Update
from federation.learning.sets import Sets
from tests.strategies.quadratic import START, Fleet, QuadraticTrainer, assert_close, method, start_model


def quadratic(node: str, optimum: float, num_steps: int, *, num_examples: int = 1, steepness: float = 1.0) -> QuadraticTrainer:
    trainer = QuadraticTrainer(node, optimum=optimum, num_examples=num_examples, steepness=steepness)
    trainer.num_steps = num_steps
    return trainer


def test_fednova_follows_its_paper() -> None:
    """Equation 8 in plain float64: accumulated gradients over numbers of steps, the mean number of steps before it."""
    rate = QuadraticTrainer.learning_rate
    nodes = [("a", -1.0, 2, 1, 1.0), ("b", 3.0, 10, 3, 2.0), ("c", 0.5, 5, 2, 0.5)]
    trainers = [quadratic(name, optimum, steps, num_examples=count, steepness=steep) for name, optimum, steps, count, steep in nodes]
    fleet = Fleet(method("fednova"), *trainers)
    shares = [count / 6 for _, _, _, count, _ in nodes]
    tau = sum(share * node[2] for share, node in zip(shares, nodes, strict=True))
    weights = {name: array.astype(np.float64) for name, array in START.items()}
    for _ in range(5):
        fleet.run(1)
        for name, w in weights.items():
            moved, averaged = np.zeros(w.shape), np.zeros(w.shape)
            for share, (_, optimum, steps, _, steep) in zip(shares, nodes, strict=True):
                y, gradients = w.copy(), np.zeros(w.shape)
                for _ in range(steps):
                    gradient = steep * (y - optimum)
                    gradients += gradient
                    y = y - rate * gradient
                moved += share * gradients / steps
                averaged += share * y
            weights[name] = averaged if name.endswith("running_var") else w - tau * rate * moved
        assert_close(fleet.sets["model"], weights)


def test_of_equal_numbers_of_steps_it_is_fedavg() -> None:
    trainers = [quadratic("a", -1.0, 4, num_examples=2), quadratic("b", 3.0, 4)]
    nova, fedavg = Fleet(method("fednova"), *trainers), Fleet(method("fedavg"), *trainers)
    np.testing.assert_allclose(nova.run(4)["model"]["hidden.weight"], fedavg.run(4)["model"]["hidden.weight"], rtol=1e-5)


def test_a_node_of_many_steps_does_not_draw_the_model_to_itself() -> None:
    """Two parabolas of one steepness: their common optimum lies midway, and FedAvg rests nearer to whoever takes more steps."""
    trainers = [quadratic("a", -1.0, 1), quadratic("b", 3.0, 8)]
    nova, fedavg = Fleet(method("fednova"), *trainers), Fleet(method("fedavg"), *trainers)
    resting = [float(fleet.run(60)["model"]["hidden.weight"][0]) for fleet in (nova, fedavg)]
    assert abs(resting[0] - 1.0) < 0.5 * abs(resting[1] - 1.0)


@pytest.mark.parametrize("claim", [0.0, -1.0, 1e-30, 1.0])
def test_a_lie_about_steps_is_bounded(claim: float) -> None:
    """Honest nodes took 10 steps: what one of three claims can stretch the model's step to (2 * 10 + 200) / 3 at most."""
    algorithm = method("fednova", num_nodes=3)
    sets = algorithm.start(start_model())
    ones = sets["model"].zeros().map(lambda zeros: zeros + 0.01)
    inverses = {"a": 0.1, "b": 0.1, "c": claim}
    updates = [
        Update(node=node, num_examples=1, sets=Sets({"model": ones, "steps": {"inverse": np.array([value], np.float32)}}))
        for node, value in inverses.items()
    ]
    moved = algorithm.aggregate(sets, updates)["model"] - sets["model"]
    steps = float(moved["hidden.weight"][0]) / 0.01
    assert steps == pytest.approx((20 + 1) / 3 if claim == 1.0 else (20 + 200) / 3, rel=1e-4)
