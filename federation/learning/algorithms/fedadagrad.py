"""FedAdagrad: a server whose steps shrink, weight by weight, with all that a weight has moved before.

    delta_t = sum_k (n_k / n) * w_k - w_t
    m_t = beta1 * m_{t-1} + (1 - beta1) * delta_t
    v_t = v_{t-1} + delta_t^2
    w_{t+1} = w_t + eta * m_t / (sqrt(v_t) + tau)

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, algorithm 2, with m = 0 and v = tau^2 at the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from federation.learning.algorithms.algorithm import Algorithm, NodeState, Trainer, Update, mean
from federation.learning.algorithms.batch_norm import with_averaged_statistics
from federation.learning.sets import Sets, TensorSet


class FedAdagrad(Algorithm):
    """Adaptive server optimiser. Set down and up: model; on the server: momentum, squares."""

    class Settings(Algorithm.Settings):
        """The server's optimiser."""

        name: Literal["fedadagrad"] = "fedadagrad"
        server_learning_rate: Annotated[float, Field(gt=0, le=100)] = 0.01
        """The first step of a weight is about this; FedAvg's would be as far as the nodes went."""
        beta1: Annotated[float, Field(ge=0, lt=1)] = 0.0
        """0 as in the paper's experiments with this method."""
        tau: Annotated[float, Field(gt=0, le=1)] = 0.001
        """How adaptive: the smaller, the more a weight's step depends on its own past."""

    settings: Settings

    def start(self, model: TensorSet) -> Sets:
        """Return the model, no momentum, and the least sum of squares."""
        squares = model.zeros().map(lambda zeros: zeros + self.settings.tau**2)
        return Sets({"model": model, "momentum": model.zeros(), "squares": squares})

    def train(self, trainer: Trainer, sets: Sets, node: NodeState) -> Update:  # noqa: ARG002 - the seam's signature
        """Return the trained model."""
        trained = trainer.fit(sets["model"])
        return trained.update(model=trained.model)

    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return the sets after one step of the server's optimiser; statistics of batch normalisation are averaged."""
        settings, model, average = self.settings, sets["model"], mean(updates, "model", weights="examples")
        delta = average - model
        momentum = sets["momentum"] * settings.beta1 + delta * (1 - settings.beta1)
        squares = sets["squares"] + delta * delta
        stepped = model + momentum * settings.server_learning_rate / squares.map(lambda values: np.sqrt(values) + settings.tau)
        return Sets({"model": with_averaged_statistics(stepped, average), "momentum": momentum, "squares": squares})
