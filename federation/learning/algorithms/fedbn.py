"""FedBN: batch normalisation is each node's own, all other layers are everybody's.

Sites whose images look different (another scanner, another stain) have other statistics in every layer; their mean fits
none of them. Predictions are made where the normalisation is: on nodes.

Li et al., "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization", ICLR 2021, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from federation.errors import SettingsError
from federation.learning.algorithms.algorithm import Algorithm, NodeState, Trainer, Update, mean
from federation.learning.algorithms.batch_norm import norm_layers
from federation.learning.algorithms.personal_layers import PERSONAL, LayerName, completed, others, shared_names
from federation.learning.sets import Sets, TensorSet


class FedBN(Algorithm):
    """Personal normalisation. Set down and up: model, without it; on the node: personal."""

    class Settings(Algorithm.Settings):
        """Which layers normalise."""

        name: Literal["fedbn"] = "fedbn"
        personal_layers: Annotated[list[LayerName], Field(max_length=100)] = Field(default_factory=list)
        """By name as the network names them; none: those that count statistics, which batch normalisation alone does."""

    settings: Settings
    keeps_node_state: ClassVar = True

    def start(self, model: TensorSet) -> Sets:
        """Return the shared layers.

        Raises:
            SettingsError: the network normalises nothing, or has no other layers.
        """
        layers = self.settings.personal_layers or norm_layers(model)
        if not layers:
            raise SettingsError(
                "method 'fedbn' keeps batch normalisation on the nodes, and this network has none: choose resnet18, or fedper"
            )
        return Sets({"model": model.only(shared_names(model, layers))})

    def train(self, trainer: Trainer, sets: Sets, node: NodeState) -> Update:
        """Return the shared layers, trained between this node's own ones."""
        shared = sets["model"]
        trained = trainer.fit(completed(shared, node, trainer.initial))
        node[PERSONAL] = others(trained.model, shared)
        return trained.update(model=trained.model.only(shared))

    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return the weighted mean of the shared layers."""
        return sets.with_sets(model=mean(updates, "model", weights="examples"))

    def whole_model(self, sets: Sets, node: NodeState | None, initial: TensorSet) -> TensorSet | None:
        """Return the shared layers with this node's own normalisation; None on the server, which has none."""
        return None if node is None else completed(sets["model"], node, initial)
