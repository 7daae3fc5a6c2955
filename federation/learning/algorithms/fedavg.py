"""FedAvg: the mean of the trained models, weighted by their number of examples.

    w_{t+1} = sum_k (n_k / n) * w_k

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from federation.learning.algorithms.algorithm import Algorithm, NodeState, Trainer, Update, mean
from federation.learning.sets import Sets


class FedAvg(Algorithm):
    """Federated averaging. Set down and up: model."""

    class Settings(Algorithm.Settings):
        """None of its own."""

        name: Literal["fedavg"] = "fedavg"

    def train(self, trainer: Trainer, sets: Sets, node: NodeState) -> Update:  # noqa: ARG002 - the seam's signature
        """Return the trained model."""
        trained = trainer.fit(sets["model"])
        return trained.update(model=trained.model)

    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return the weighted mean of the models."""
        return sets.with_sets(model=mean(updates, "model", weights="examples"))
