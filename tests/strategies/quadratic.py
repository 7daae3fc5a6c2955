"""Nodes whose loss is a parabola, so that what local training gives can be worked out by hand."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.learning.algorithms import Algorithm, NodeState, Trained, Update, build_algorithm
from federation.learning.sets import Sets, TensorSet

Vector = NDArray[np.float64]

START: Mapping[str, Any] = {
    "output.weight": np.array([[0.5, -1.0, 2.0], [0.25, 0.0, 1.0]], np.float32),
    "hidden.weight": np.array([1.0, -2.0, 3.0, 0.5], np.float32),
    "norm.running_var": np.array([1.0, 2.0], np.float32),
}


def start_model() -> TensorSet:
    """Return a small network's tensors: a shared layer, a last layer, and a statistic."""
    return TensorSet(START)


class QuadraticTrainer:
    """Minimises 1/2 * steepness * ||w - optimum||^2 by plain gradient descent. Implements `Trainer`.

    Args:
        node: its name.
        optimum: where this node's loss is least, the same in every coordinate.
        num_examples: how much it counts.
    """

    num_steps, learning_rate = 4, 0.125

    def __init__(self, node: str, *, optimum: float, num_examples: int = 1, steepness: float = 1.0) -> None:
        self.node = node
        self.optimum = optimum
        self.num_examples = num_examples
        self.steepness = steepness
        self.initial = start_model()
        self.label_counts: list[int] | None = None

    def fit(
        self,
        start: TensorSet,
        *,
        proximal_mu: float = 0.0,
        gradient_offset: TensorSet | None = None,
        only: Collection[str] | None = None,
        local_epochs: int | None = None,
    ) -> Trained:
        """Take the steps: `num_steps` for each epoch, of one epoch where none are given."""
        trained = {}
        for name in start:
            begin = start[name].astype(np.float64)
            weights, offset = begin, gradient_offset[name].astype(np.float64) if gradient_offset is not None else 0.0
            for _ in range(self.num_steps * (local_epochs or 1) if only is None or name in only else 0):
                gradient = self.steepness * (weights - self.optimum) + proximal_mu * (weights - begin)
                weights = weights - self.learning_rate * (gradient + offset)
            trained[name] = weights.astype(np.float32)
        return Trained(
            node=self.node,
            model=TensorSet(trained),
            num_examples=self.num_examples,
            num_steps=self.num_steps,
            learning_rate=self.learning_rate,
            total_step=self.num_steps * self.learning_rate,
            loss=0.0,
            seconds=0.0,
            samples_per_second=0.0,
        )


class Fleet:
    """Some nodes, what each keeps, and the sets they start from."""

    def __init__(self, algorithm: Algorithm, *trainers: QuadraticTrainer) -> None:
        self.algorithm = algorithm
        self.trainers = trainers
        self.sets = algorithm.start(start_model())
        self.kept: dict[str, NodeState] = {trainer.node: {} for trainer in trainers}

    def updates(self, *cohort: str) -> list[Update]:
        """Return the updates of a cohort, of all nodes by default."""
        chosen = [trainer for trainer in self.trainers if not cohort or trainer.node in cohort]
        down = self.sets.only(self.algorithm.down)
        updates = [self.algorithm.train(trainer, down, self.kept[trainer.node]) for trainer in chosen]
        return sorted(updates, key=lambda update: update.node)

    def run(self, num_rounds: int, *cohort: str) -> Sets:
        """Run rounds; return the sets after them."""
        for _ in range(num_rounds):
            self.sets = held(self.algorithm.aggregate(self.sets, self.updates(*cohort)))
        return self.sets


def held(sets: Sets) -> Sets:
    """Return the sets, computed and held in memory, as a file would hold them between rounds."""
    return Sets({name: tensors.held() for name, tensors in sets.items()})


def method(name: str, *, num_nodes: int = 2, **settings: Any) -> Algorithm:
    """Return a method with its settings."""
    return build_algorithm(name, settings, num_nodes=num_nodes)


def two_nodes() -> tuple[QuadraticTrainer, QuadraticTrainer]:
    """Return nodes that want different things, and count differently."""
    return QuadraticTrainer("a", optimum=-1.0, num_examples=1), QuadraticTrainer("b", optimum=3.0, num_examples=3, steepness=2.0)


def after_training(weights: Any, optimum: float, steepness: float) -> Any:
    """Gradient descent on a parabola: what is left of the distance shrinks by the same factor every step."""
    return optimum + (weights - optimum) * (1 - QuadraticTrainer.learning_rate * steepness) ** QuadraticTrainer.num_steps


def assert_close(tensors: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Fail unless these are the expected float32 tensors, within their precision."""
    assert sorted(tensors) == sorted(expected)
    for name, array in tensors.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected[name], rtol=2e-6, atol=2e-6)
