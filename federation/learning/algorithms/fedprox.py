"""FedProx: FedAvg whose nodes are pulled towards the global model while they train.

    min_w F_k(w) + (mu / 2) * ||w - w_t||^2

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, equation 2. The server's half is FedAvg's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from federation.learning.algorithms.algorithm import Algorithm, NodeState, Trainer, Update, mean
from federation.learning.sets import Sets


class FedProx(Algorithm):
    """FedAvg with a proximal term. Set down and up: model."""

    class Settings(Algorithm.Settings):
        """The proximal term's weight."""

        name: Literal["fedprox"] = "fedprox"
        mu: Annotated[float, Field(ge=0, le=1e6)] = 0.01
        """Of mu/2 * ||w - w_t||^2 in the local loss."""

    settings: Settings

    def train(self, trainer: Trainer, sets: Sets, node: NodeState) -> Update:  # noqa: ARG002 - the seam's signature
        """Return the model trained with the proximal term."""
        trained = trainer.fit(sets["model"], proximal_mu=self.settings.mu)
        return trained.update(model=trained.model)

    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return the weighted mean of the models."""
        return sets.with_sets(model=mean(updates, "model", weights="examples"))
