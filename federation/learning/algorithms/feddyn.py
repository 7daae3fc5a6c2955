"""FedDyn: each node's loss is bent so that the best model of all is the best of each.

    w_k = argmin_w F_k(w) - <g_k, w> + (alpha / 2) * ||w - w_t||^2          on node k, from w = w_t
    g_k <- g_k - alpha * (w_k - w_t)
    h <- h - (alpha / N) * sum_{k in S} (w_k - w_t)
    w_{t+1} = (1 / |S|) * sum_{k in S} w_k - h / alpha

Acar et al., "Federated Learning Based on Dynamic Regularization", ICLR 2021, algorithm 1. Every node counts the same there, too.
Local training is a few epochs instead of an argmin, as in the paper's experiments. N is the number of nodes the cohort is drawn from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from federation.learning.algorithms.algorithm import Algorithm, NodeState, Trainer, Update, mean
from federation.learning.algorithms.batch_norm import with_averaged_statistics
from federation.learning.sets import Sets, TensorSet


class FedDyn(Algorithm):
    """Dynamic regularisation. Set down and up: model; on the server: correction (h); on the node: gradient (g_k)."""

    class Settings(Algorithm.Settings):
        """The regularisation's strength."""

        name: Literal["feddyn"] = "feddyn"
        alpha: Annotated[float, Field(gt=0, le=1e3)] = 0.01
        """The middle one of the paper's 0.1, 0.01 and 0.001: larger stays nearer to the global model and corrects more."""

    settings: Settings
    keeps_node_state: ClassVar = True

    def start(self, model: TensorSet) -> Sets:
        """Return the model and no correction."""
        return Sets({"model": model, "correction": model.zeros()})

    def train(self, trainer: Trainer, sets: Sets, node: NodeState) -> Update:
        """Return the model trained with pull and offset; the node keeps what its loss's gradient there is taken to be."""
        start, alpha = sets["model"], self.settings.alpha
        gradient = node.get("gradient", start.zeros())
        trained = trainer.fit(start, proximal_mu=alpha, gradient_offset=-gradient)
        node["gradient"] = gradient - (trained.model - start) * alpha
        return trained.update(model=trained.model)

    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return the corrected mean of the models; statistics of batch normalisation are averaged."""
        alpha, average = self.settings.alpha, mean(updates, "model", weights="equal")
        share = len(updates) / max(self.num_nodes, len(updates))
        correction = sets["correction"] - (average - sets["model"]) * (alpha * share)
        return Sets({"model": with_averaged_statistics(average - correction / alpha, average), "correction": correction})
