"""FedProx: FedAvg whose nodes add a proximal term to their local loss.

    min_w F_k(w) + (mu / 2) * ||w - w_t||^2

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, equation 2. The server's part
is FedAvg's; the term itself is in federation/training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from federation.params import Params
from federation.strategies.fedavg import FedAvg
from federation.strategies.strategy import Aggregation, Update


@dataclass(frozen=True, slots=True, kw_only=True)
class FedProx:
    """FedAvg with mu for the nodes; keeps no state."""

    mu: float

    @property
    def proximal_mu(self) -> float:
        """Weight of the proximal term that nodes add to their local loss."""
        return self.mu

    def initial_state(self, global_params: Params) -> Params:
        """Return no state."""
        return FedAvg().initial_state(global_params)

    def aggregate(self, *, state: Params, global_params: Params, updates: Sequence[Update]) -> Aggregation:
        """Return the weighted mean of the updates."""
        return FedAvg().aggregate(state=state, global_params=global_params, updates=updates)
