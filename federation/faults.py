"""What can go wrong between a broker and its subscribers, chosen by a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

Decide: TypeAlias = Callable[[str, str], bool]
"""(client id, topic) -> whether the fault happens to this delivery."""


def _never(_client_id: str, _topic: str) -> bool:
    return False


def _first(_client_id: str, _num_queued: int) -> int:
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Hooks that decide about each delivery; by default nothing goes wrong."""

    drop: Decide = _never
    """A copy vanishes, as Mosquitto's does when a subscriber's queue is full; the publisher learns nothing."""
    duplicate: Decide = _never
    """A message comes twice, as QoS 1 allows."""
    pick: Callable[[str, int], int] = _first
    """(client id, number queued) -> index of the message that comes next."""


def seeded_faults(
    seed: int,
    *,
    drop: float = 0.0,
    duplicate: float = 0.0,
    reorder: float = 0.0,
    affects: Callable[[str], bool] = lambda _topic: True,
) -> Faults:
    """Return faults that strike at random, the same for the same seed and the same deliveries.

    Args:
        seed: of the generator.
        drop: share of deliveries that vanish.
        duplicate: share of deliveries that come twice.
        reorder: share of deliveries that overtake others.
        affects: which topics may be dropped or duplicated.
    """
    random = Random(seed)  # noqa: S311 - repeatable on purpose
    return Faults(
        drop=lambda _client_id, topic: affects(topic) and random.random() < drop,
        duplicate=lambda _client_id, topic: affects(topic) and random.random() < duplicate,
        pick=lambda _client_id, num_queued: random.randrange(num_queued) if random.random() < reorder else 0,
    )
