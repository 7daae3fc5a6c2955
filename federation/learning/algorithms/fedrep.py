"""FedRep: everybody's lower layers, trained below last layers that each node has first fitted to them.

    h_k <- argmin_h F_k(phi_t, h)                 the node's own layers, some epochs with the shared ones fixed
    phi_k <- one or more epochs on F_k(phi, h_k)  the shared ones, with the node's own fixed
    phi_{t+1} = sum_k (n_k / n) * phi_k

FedPer trains both at once. The node trains twice; predictions are made where the personal layers are: on nodes.

Collins et al., "Exploiting Shared Representations for Personalized Federated Learning", ICML 2021, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from federation.learning.algorithms.algorithm import Algorithm, NodeState, Trainer, Update, mean
from federation.learning.algorithms.personal_layers import PERSONAL, LayerNames, completed, others, shared_names
from federation.learning.sets import Sets, TensorSet


class FedRep(Algorithm):
    """Personal last layers, fitted first. Set down and up: model, without them; on the node: personal."""

    class Settings(Algorithm.Settings):
        """Which layers stay on the node, and how long they are fitted."""

        name: Literal["fedrep"] = "fedrep"
        personal_layers: LayerNames = Field(default_factory=lambda: ["output"])
        """As under `fedper`: `output` means `output.weight` and `output.bias`."""
        personal_epochs: Annotated[int, Field(ge=0, le=1000)] = 0
        """Local epochs of the personal layers; 0: as many as the shared ones', `training.local_epochs`."""

    settings: Settings
    keeps_node_state: ClassVar = True

    def start(self, model: TensorSet) -> Sets:
        """Return the shared layers."""
        return Sets({"model": model.only(shared_names(model, self.settings.personal_layers))})

    def train(self, trainer: Trainer, sets: Sets, node: NodeState) -> Update:
        """Return the shared layers, trained below this node's own ones."""
        shared = sets["model"]
        whole = completed(shared, node, trainer.initial)
        fitted = trainer.fit(whole, only=others(whole, shared), local_epochs=self.settings.personal_epochs or None)
        # What the first training counted in the shared layers, their statistics, is not of the shared layers' own training.
        personal = others(fitted.model, shared)
        trained = trainer.fit(shared.joined(personal), only=shared)
        node[PERSONAL] = personal
        return replace(trained, seconds=fitted.seconds + trained.seconds).update(model=trained.model.only(shared))

    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return the weighted mean of the shared layers."""
        return sets.with_sets(model=mean(updates, "model", weights="examples"))

    def whole_model(self, sets: Sets, node: NodeState | None, initial: TensorSet) -> TensorSet | None:
        """Return the shared layers below this node's own ones; None on the server, which has no such layers."""
        return None if node is None else completed(sets["model"], node, initial)
