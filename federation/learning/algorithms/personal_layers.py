"""Layers that never leave their node: which tensors they are, and the whole network with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import Field

from federation.errors import SettingsError
from federation.learning.algorithms.algorithm import NodeState
from federation.learning.sets import TensorSet

PERSONAL = "personal"
"""The set that a node keeps them in."""

LayerName = Annotated[str, Field(min_length=1, max_length=200)]
"""As the network names them: `output` means `output.weight` and `output.bias`."""

LayerNames = Annotated[list[LayerName], Field(min_length=1, max_length=100)]


def shared_names(model: TensorSet, layers: Sequence[str]) -> list[str]:
    """Return the tensors that are of none of these layers, in name order.

    Raises:
        SettingsError: the network has no such layer, or no other.
    """
    for layer in layers:
        if not any(is_of(name, layer) for name in model):
            names = sorted({name.rpartition(".")[0] or name for name in model})
            raise SettingsError(f"method.personal_layers: the network has no layer {layer!r}; it has {', '.join(names)[:300]}")
    shared = [name for name in model if not any(is_of(name, layer) for layer in layers)]
    if not shared:
        raise SettingsError("method.personal_layers: all layers are personal, so nothing is learnt together; leave some out")
    return shared


def completed(shared: TensorSet, node: NodeState, initial: TensorSet) -> TensorSet:
    """Return the whole network: the shared layers, and this node's own ones or, before its first update, the run's first ones."""
    return shared.joined(node[PERSONAL] if PERSONAL in node else others(initial, shared))


def others(model: TensorSet, shared: Iterable[str]) -> TensorSet:
    """Return the tensors that are not shared."""
    names = set(shared)
    return model.only(name for name in model if name not in names)


def is_of(name: str, layer: str) -> bool:
    """Return whether a tensor is of a layer, or of one within it."""
    return name == layer or name.startswith(f"{layer}.")
