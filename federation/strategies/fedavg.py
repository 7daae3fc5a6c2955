"""FedAvg: the mean of the updates, weighted by their number of examples.

    w_{t+1} = sum_k (n_k / n) * w_k

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from federation.params import Params
from federation.strategies.strategy import Aggregation, Update, WeightedMean


@dataclass(frozen=True, slots=True)
class FedAvg:
    """Federated averaging; keeps no state."""

    proximal_mu: float = 0.0

    def initial_state(self, global_params: Params) -> Params:  # noqa: ARG002 - the protocol's signature
        """Return no state."""
        return {}

    def aggregate(self, *, state: Params, global_params: Params, updates: Sequence[Update]) -> Aggregation:  # noqa: ARG002
        """Return the weighted mean of the updates."""
        return Aggregation(params=WeightedMean(updates), state=state)
