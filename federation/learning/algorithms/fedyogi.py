"""FedYogi: FedAdam whose estimate of a weight's variance falls no faster than it rises.

    delta_t = sum_k (n_k / n) * w_k - w_t
    m_t = beta1 * m_{t-1} + (1 - beta1) * delta_t
    v_t = v_{t-1} - (1 - beta2) * delta_t^2 * sign(v_{t-1} - delta_t^2)
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


class FedYogi(Algorithm):
    """Adaptive server optimiser. Set down and up: model; on the server: momentum, variance."""

    class Settings(Algorithm.Settings):
        """The server's optimiser."""

        name: Literal["fedyogi"] = "fedyogi"
        server_learning_rate: Annotated[float, Field(gt=0, le=100)] = 0.01
        """Length of the server's step."""
        beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
        """How much of the past rounds' mean step is kept."""
        beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
        """How much of the past rounds' mean square is."""
        tau: Annotated[float, Field(gt=0, le=1)] = 0.001
        """How adaptive: the smaller, the more a weight's step depends on its own past. All four as in the paper's section 5."""

    settings: Settings

    def start(self, model: TensorSet) -> Sets:
        """Return the model, no momentum, and the least variance."""
        variance = model.zeros().map(lambda zeros: zeros + self.settings.tau**2)
        return Sets({"model": model, "momentum": model.zeros(), "variance": variance})

    def train(self, trainer: Trainer, sets: Sets, node: NodeState) -> Update:  # noqa: ARG002 - the seam's signature
        """Return the trained model."""
        trained = trainer.fit(sets["model"])
        return trained.update(model=trained.model)

    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return the sets after one step of the server's optimiser; statistics of batch normalisation are averaged."""
        settings, model, average = self.settings, sets["model"], mean(updates, "model", weights="examples")
        delta = average - model
        squares = delta * delta
        momentum = sets["momentum"] * settings.beta1 + delta * (1 - settings.beta1)
        variance = sets["variance"] - squares * (sets["variance"] - squares).map(np.sign) * (1 - settings.beta2)
        stepped = model + momentum * settings.server_learning_rate / variance.map(lambda values: np.sqrt(values) + settings.tau)
        return Sets({"model": with_averaged_statistics(stepped, average), "momentum": momentum, "variance": variance})
