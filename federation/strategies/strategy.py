"""What every aggregation strategy is: state and updates in; state, next global model and diagnostics out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from federation.errors import LocalProtocolError
from federation.params import Array, Params


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One accepted update. Its tensors may be read from disk one at a time."""

    node: str
    num_examples: int
    params: Params


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregation:
    """What a strategy made of one round.

    `params` and `state` may compute a tensor when it is asked for, so that whoever writes them out in
    name order never holds more than one tensor of each model.
    """

    params: Params
    state: Params
    diagnostics: Mapping[str, float] = field(default_factory=dict)


class Strategy(Protocol):
    """A pure aggregation rule."""

    @property
    def proximal_mu(self) -> float:
        """Weight of the proximal term that nodes add to their local loss; 0 for none."""
        ...

    def initial_state(self, global_params: Params) -> Params:
        """Return the state before the first round; empty where the rule has none."""
        ...

    def aggregate(self, *, state: Params, global_params: Params, updates: Sequence[Update]) -> Aggregation:
        """Return the next state and global model.

        Args:
            state: what the previous round returned.
            global_params: the model the updates were trained from.
            updates: at least one, sorted by node name, each of the global model's signature.

        Raises:
            LocalProtocolError: no updates, or not in node order.
        """
        ...


class WeightedMean(Mapping[str, Array]):
    """The mean of the updates, weighted by their number of examples, computed per tensor on access.

    Sums run in float64 and in node order, so the result is the same bit for bit whenever the updates
    are; the returned tensors are float32.
    """

    def __init__(self, updates: Sequence[Update]) -> None:
        check_updates(updates)
        self._updates = updates
        self._total = sum(update.num_examples for update in updates)

    def __getitem__(self, name: str) -> Array:
        first = self._updates[0].params[name]
        total = np.zeros(first.shape, dtype=np.float64)
        scaled = np.empty_like(total)
        for update in self._updates:
            np.multiply(update.params[name], np.float64(update.num_examples), out=scaled)
            total += scaled
        total /= self._total
        return total.astype(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._updates[0].params))

    def __len__(self) -> int:
        return len(self._updates[0].params)


def check_updates(updates: Sequence[Update]) -> None:
    """Raise unless there are updates, in node order.

    Raises:
        LocalProtocolError: a caller's bug; sums must run in node order to repeat bit for bit.
    """
    if not updates:
        raise LocalProtocolError("a strategy needs at least one update")
    nodes = [update.node for update in updates]
    if nodes != sorted(set(nodes)):
        raise LocalProtocolError(f"updates must be of distinct nodes in node order, not {nodes}")
