"""FedPer: the lower layers are everybody's, the last ones each node's own.

The shared layers are averaged as FedAvg averages a model; the personal ones never leave their node, so a node's
labels and their frequencies do not show in what it sends. Predictions are made where the personal layers are: on nodes.

Arivazhagan et al., "Federated Learning with Personalization Layers", arXiv 1912.00818, algorithms 1 and 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from federation.errors import SettingsError
from federation.learning.algorithms.algorithm import Algorithm, NodeState, Trainer, Update, mean
from federation.learning.sets import Sets, TensorSet

PERSONAL = "personal"

LayerNames = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(min_length=1, max_length=100)]


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
        return Sets({"model": model.only(self._shared(model))})

    def train(self, trainer: Trainer, sets: Sets, node: NodeState) -> Update:
        """Return the shared layers, trained below this node's own ones."""
        trained = trainer.fit(self._completed(sets["model"], node, trainer.initial))
        shared = sets["model"]
        node[PERSONAL] = trained.model.only(name for name in trained.model if name not in shared)
        return trained.update(model=trained.model.only(shared))

    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return the weighted mean of the shared layers."""
        return sets.with_sets(model=mean(updates, "model", weights="examples"))

    def whole_model(self, sets: Sets, node: NodeState | None, initial: TensorSet) -> TensorSet | None:
        """Return the shared layers below this node's own ones; None on the server, which has no such layers."""
        return None if node is None else self._completed(sets["model"], node, initial)

    def _completed(self, shared: TensorSet, node: NodeState, initial: TensorSet) -> TensorSet:
        return shared.joined(node[PERSONAL] if PERSONAL in node else initial.only(name for name in initial if name not in shared))

    def _shared(self, model: TensorSet) -> list[str]:
        layers = self.settings.personal_layers
        for layer in layers:
            if not any(_is_of(name, layer) for name in model):
                names = sorted({name.rpartition(".")[0] or name for name in model})
                raise SettingsError(f"method.personal_layers: the network has no layer {layer!r}; it has {', '.join(names)[:300]}")
        shared = [name for name in model if not any(_is_of(name, layer) for layer in layers)]
        if not shared:
            raise SettingsError("method.personal_layers: all layers are personal, so nothing is learnt together; leave some out")
        return shared


def _is_of(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")
