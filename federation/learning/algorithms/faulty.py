"""How many of a round's updates may be wrong, and how many it takes so that those don't decide."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

from federation.errors import LocalProtocolError
from federation.learning.algorithms.algorithm import Update, check_updates


def num_faulty(share: float, num_updates: int, *, most: int) -> int:
    """Return how many updates to reckon with.

    Args:
        share: of the updates; rounded down, but one at least.
        num_updates: there are.
        most: that the method can withstand among so many.
    """
    return min(max(1, floor(share * num_updates)), most)


def check_enough(updates: Sequence[Update], method: str, min_updates: int) -> None:
    """Raise unless there are updates in node order, and enough of them.

    Raises:
        LocalProtocolError: a caller's bug: rounds with fewer are not aggregated.
    """
    check_updates(updates)
    if len(updates) < min_updates:
        raise LocalProtocolError(f"{method} needs {min_updates} updates or more, there are {len(updates)}")
