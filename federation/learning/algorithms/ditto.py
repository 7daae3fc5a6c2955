"""Ditto: the global model of FedAvg, and beside it a model of each node's own, held near to it.

    w_k = F_k's training from w_t                                   sent, and averaged as FedAvg does
    v_k <- v_k - eta * (grad F_k(v_k) + lambda * (v_k - w_t))       kept, and what the node predicts with

Li et al., "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021, algorithm 1. The node trains twice.
A pull towards w_t is a pull towards where v_k began plus a constant; the constant is not clipped with the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from federation.learning.algorithms.algorithm import Algorithm, NodeState, Trainer, Update, mean
from federation.learning.algorithms.personal_layers import PERSONAL
from federation.learning.sets import Sets, TensorSet


class Ditto(Algorithm):
    """A model of one's own. Set down and up: model; on the node: personal, a whole model."""

    class Settings(Algorithm.Settings):
        """How near to the global model a node's own one is held."""

        name: Literal["ditto"] = "ditto"
        pull: Annotated[float, Field(ge=0, le=1e3)] = 0.1
        """The paper's lambda; at 0 each node learns alone, at large values all have the global model."""

    settings: Settings
    keeps_node_state: ClassVar = True

    def train(self, trainer: Trainer, sets: Sets, node: NodeState) -> Update:
        """Return the trained global model; the node keeps its own one, which begins as the first global model it sees."""
        start, pull = sets["model"], self.settings.pull
        trained = trainer.fit(start)
        own = node.get(PERSONAL, start)
        personal = trainer.fit(own, proximal_mu=pull, gradient_offset=(own - start) * pull)
        node[PERSONAL] = personal.model
        return replace(trained, seconds=trained.seconds + personal.seconds).update(model=trained.model)

    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return the weighted mean of the models."""
        return sets.with_sets(model=mean(updates, "model", weights="examples"))

    def whole_model(self, sets: Sets, node: NodeState | None, initial: TensorSet) -> TensorSet | None:  # noqa: ARG002 - the seam's signature
        """Return the node's own model where it has one; elsewhere the global one."""
        return sets["model"] if node is None else node.get(PERSONAL, sets["model"])
