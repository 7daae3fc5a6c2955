"""FedMedian: the median of the updates, coordinate by coordinate.

    w_{t+1}[j] = median{ w_k[j] : k in the cohort }

Fewer than half of the updates, however wrong, can't move a coordinate outside the others' range. Every node
counts the same: the numbers of examples, which a node could lie about, are not used.

Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, definition 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from federation.errors import LocalProtocolError
from federation.params import Array, Params
from federation.settings import MIN_UPDATES
from federation.strategies.strategy import Aggregation, Update, check_updates


@dataclass(frozen=True, slots=True)
class FedMedian:
    """Coordinate-wise median; keeps no state."""

    proximal_mu: float = 0.0

    def initial_state(self, global_params: Params) -> Params:  # noqa: ARG002 - the protocol's signature
        """Return no state."""
        return {}

    def aggregate(self, *, state: Params, global_params: Params, updates: Sequence[Update]) -> Aggregation:  # noqa: ARG002
        """Return the median of the updates.

        Raises:
            LocalProtocolError: fewer than three updates: of two the median is the mean, which one of them moves at will.
        """
        if len(updates) < MIN_UPDATES["fedmedian"]:
            raise LocalProtocolError(f"fedmedian needs {MIN_UPDATES['fedmedian']} updates or more, there are {len(updates)}")
        return Aggregation(params=_Median(updates), state=state)


class _Median(Mapping[str, Array]):
    """The median of the updates, computed per tensor on access; of an even number, the mean of the middle two."""

    def __init__(self, updates: Sequence[Update]) -> None:
        check_updates(updates)
        self._updates = updates

    def __getitem__(self, name: str) -> Array:
        stacked = np.stack([np.asarray(update.params[name], dtype=np.float64) for update in self._updates])
        median: Array = np.median(stacked, axis=0)
        return median.astype(np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._updates[0].params))

    def __len__(self) -> int:
        return len(self._updates[0].params)
