"""FedPer: the lower layers are everybody's, the last ones each node's own.

The shared layers are averaged as FedAvg averages a model; the personal ones never leave their node, so a node's
labels and their frequencies do not show in what it sends. Predictions are made where the personal layers are: on nodes.

Arivazhagan et al., "Federated Learning with Personalization Layers", arXiv 1912.00818, algorithms 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from federation.learning.algorithms.algorithm import Algorithm, NodeState, Trainer, Update, mean
from federation.learning.algorithms.personal_layers import PERSONAL, LayerNames, completed, others, shared_names
from federation.learning.sets import Sets, TensorSet


class FedPer(Algorithm):
    """Personal last layers. Set down and up: model, without them; on the node: personal."""

    class Settings(Algorithm.Settings):
        """Which layers stay on the node."""

        name: Literal["fedper"] = "fedper"
        personal_layers: LayerNames = Field(default_factory=lambda: ["output"])
        """By name as the network names them: `output` means `output.weight` and `output.bias`."""

    settings: Settings
    keeps_node_state: ClassVar = True

    def start(self, model: TensorSet) -> Sets:
        """Return the shared layers."""
        return Sets({"model": model.only(shared_names(model, self.settings.personal_layers))})

    def train(self, trainer: Trainer, sets: Sets, node: NodeState) -> Update:
        """Return the shared layers, trained below this node's own ones."""
        shared = sets["model"]
        trained = trainer.fit(completed(shared, node, trainer.initial))
        node[PERSONAL] = others(trained.model, shared)
        return trained.update(model=trained.model.only(shared))

    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return the weighted mean of the shared layers."""
        return sets.with_sets(model=mean(updates, "model", weights="examples"))

    def whole_model(self, sets: Sets, node: NodeState | None, initial: TensorSet) -> TensorSet | None:
        """Return the shared layers below this node's own ones; None on the server, which has no such layers."""
        return None if node is None else completed(sets["model"], node, initial)
