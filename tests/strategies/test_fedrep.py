"""FedRep: personal layers fitted first, shared ones trained below them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from federation.learning.algorithms import Trained
from federation.learning.sets import TensorSet
from tests.strategies.quadratic import Fleet, QuadraticTrainer, method, start_model

RATE = 0.05


class CoupledTrainer(QuadraticTrainer):
    """Minimises 1/2 * (body * head - target)^2 of one number each, so that the order of the two trainings shows. Notes its calls."""

    def __init__(self, node: str, *, target: float) -> None:
        super().__init__(node, optimum=0.0)
        self.target = target
        self.calls: list[tuple[list[str], int | None]] = []
        self.initial = TensorSet({"body.weight": np.array([1.0], np.float32), "output.weight": np.array([0.5], np.float32)})

    def fit(self, start: TensorSet, *, only: Any = None, local_epochs: int | None = None, **rest: Any) -> Trained:
        """Take the steps along the gradients of what may move."""
        assert not rest
        names = sorted(only) if only is not None else sorted(start)
        self.calls.append((names, local_epochs))
        values = {name: float(start[name][0]) for name in start}
        for _ in range(2 * (local_epochs or 1)):
            error = values["body.weight"] * values["output.weight"] - self.target
            gradients = {"body.weight": error * values["output.weight"], "output.weight": error * values["body.weight"]}
            values = {name: value - RATE * gradients[name] * (name in names) for name, value in values.items()}
        trained = TensorSet({name: np.array([value], np.float32) for name, value in values.items()})
        return Trained(
            node=self.node,
            model=trained,
            num_examples=self.num_examples,
            num_steps=4,
            learning_rate=RATE,
            total_step=4 * RATE,
            loss=0.0,
            seconds=1.0,
            samples_per_second=1.0,
        )


@pytest.mark.parametrize("personal_epochs", [0, 3])
def test_fedrep_follows_its_paper(personal_epochs: int) -> None:
    """Algorithm 1 in plain float64: first the head with the body fixed, then the body with the new head fixed, then the bodies' mean."""
    targets = {"a": 2.0, "b": -1.0}
    trainers = [CoupledTrainer(node, target=target) for node, target in targets.items()]
    algorithm = method("fedrep", personal_epochs=personal_epochs)
    fleet = Fleet(algorithm, *trainers)
    fleet.sets = algorithm.start(trainers[0].initial)
    body, heads = 1.0, dict.fromkeys(targets, 0.5)
    for _ in range(4):
        fleet.run(1)
        bodies = []
        for node, target in targets.items():
            for _ in range(2 * (personal_epochs or 1)):
                heads[node] -= RATE * (body * heads[node] - target) * body
            own = body
            for _ in range(2):
                own -= RATE * (own * heads[node] - target) * heads[node]
            bodies.append(own)
        body = sum(bodies) / 2
        assert fleet.sets["model"]["body.weight"][0] == pytest.approx(body, rel=1e-5)
        for node, head in heads.items():
            assert fleet.kept[node]["personal"]["output.weight"][0] == pytest.approx(head, rel=1e-5)
    assert trainers[0].calls[:2] == [(["output.weight"], personal_epochs or None), (["body.weight"], None)]


def test_time_of_both_trainings_is_told() -> None:
    trainer = CoupledTrainer("a", target=1.0)
    algorithm = method("fedrep")
    update = algorithm.train(trainer, algorithm.start(trainer.initial), {})
    assert update.trained is not None
    assert update.trained.seconds == 2.0


def test_fedrep_predicts_on_nodes_alone() -> None:
    fleet = Fleet(method("fedrep"), QuadraticTrainer("a", optimum=-1.0), QuadraticTrainer("b", optimum=1.0))
    down = fleet.run(1)
    assert fleet.algorithm.whole_model(down, None, start_model()) is None
    whole = fleet.algorithm.whole_model(down, fleet.kept["a"], start_model())
    assert whole is not None
    assert whole.signature == start_model().signature
    np.testing.assert_array_equal(whole["output.weight"], fleet.kept["a"]["personal"]["output.weight"])
