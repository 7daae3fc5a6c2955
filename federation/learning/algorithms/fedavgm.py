"""FedAvgM: FedAvg whose server has momentum.

    delta_t = sum_k (n_k / n) * w_k - w_t
    v_t = beta * v_{t-1} + delta_t
    w_{t+1} = w_t + eta * v_t

Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
arXiv 1909.06335, section 4.1, with delta's sign turned; eta is Reddi et al.'s (ICLR 2021, algorithm 1), and 1 there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from federation.learning.algorithms.algorithm import Algorithm, NodeState, Trainer, Update, mean
from federation.learning.algorithms.batch_norm import with_averaged_statistics
from federation.learning.sets import Sets, TensorSet


class FedAvgM(Algorithm):
    """Server momentum. Set down and up: model; on the server: momentum."""

    class Settings(Algorithm.Settings):
        """The server's step."""

        name: Literal["fedavgm"] = "fedavgm"
        momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
        """With 0.5 the steps of a long run are twice FedAvg's; the paper's 0.9, ten times, wants many rounds or a lower learning rate."""
        server_learning_rate: Annotated[float, Field(gt=0, le=100)] = 1.0
        """What the momentum is multiplied by; 1 takes it whole."""

    settings: Settings

    def start(self, model: TensorSet) -> Sets:
        """Return the model and no momentum."""
        return Sets({"model": model, "momentum": model.zeros()})

    def train(self, trainer: Trainer, sets: Sets, node: NodeState) -> Update:  # noqa: ARG002 - the seam's signature
        """Return the trained model."""
        trained = trainer.fit(sets["model"])
        return trained.update(model=trained.model)

    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return the model after a step along the momentum; statistics of batch normalisation are averaged."""
        average = mean(updates, "model", weights="examples")
        momentum = sets["momentum"] * self.settings.momentum + (average - sets["model"])
        stepped = sets["model"] + momentum * self.settings.server_learning_rate
        return Sets({"model": with_averaged_statistics(stepped, average), "momentum": momentum})
