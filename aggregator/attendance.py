"""Who is really there, and who answers: liveness by something fresher than a retained status. Pure.

    roll called --answers (a live status)--> present
                --ROLL_SECONDS-------------> absent, until it is heard of
    drawn --max_missed_rounds rounds in a row without an update to use--> set aside --heard of, and its time is up--> drawn again
    drawn --once without one, and the others' round is lost by it-------> set aside

A retained status may be that of a device that died together with the broker: nothing ever takes it back. So each
aggregator that starts, or connects again, calls the roll in the run's state, and every node that lives publishes its
status anew. A node that was set aside and still fails sits out twice as long each time, until it has been of use as often.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ROLL_SECONDS = 10.0
"""How long a round waits for those whose status may be a ghost's. A node answers in less than a second, and trains on another
thread; one whose link is down just now is heard of when it is back."""

MAX_ASIDE_ROUNDS = 64
"""A node that fails whenever it comes back is tried again after so many rounds at most."""


@dataclass(slots=True)
class _Entry:
    is_present: bool = False
    """Heard of since the roll was last called."""
    num_missed: int = 0
    """Rounds in a row it was drawn into and nothing of it was aggregated."""
    times_aside: int = 0
    num_useful: int = 0
    """Rounds since it was last set aside that it had a part in."""
    until_round: int | None = None
    """It is set aside until this round at least; None: it is not."""
    has_spoken: bool = False
    """Heard of since it was set aside."""


class Attendance:
    """The attendance of one run's nodes. Times are on the coordinator's clock.

    Args:
        max_missed_rounds: a node is set aside after so many in a row.
    """

    def __init__(self, *, max_missed_rounds: int) -> None:
        self._max_missed_rounds = max_missed_rounds
        self._entries: dict[str, _Entry] = {}
        self._ends_at: float | None = None

    @property
    def ends_at(self) -> float | None:
        """When the roll call that is on ends; None when none is."""
        return self._ends_at

    def begin_roll(self, now: float) -> None:
        """Give those who have not been heard of time to answer."""
        self._ends_at = now + ROLL_SECONDS

    def call_roll(self, now: float) -> None:
        """Take nobody for present until it is heard of anew."""
        for entry in self._entries.values():
            entry.is_present = False
        self.begin_roll(now)

    def end_roll(self, now: float, nodes: Iterable[str]) -> bool:
        """Return whether there is no roll call on (any more): all `nodes` have answered, or its time is up."""
        if self._ends_at is not None and (now >= self._ends_at or all(self._entry(node).is_present for node in nodes)):
            self._ends_at = None
        return self._ends_at is None

    def hear(self, node: str) -> None:
        """Note that a node has spoken: a live status, or an update."""
        entry = self._entry(node)
        entry.is_present = entry.has_spoken = True

    def is_present(self, node: str) -> bool:
        """Return whether a node has been heard of since the roll was called, or may still answer."""
        return self._entry(node).is_present or self._ends_at is not None

    def absence(self, node: str, round_number: int, *, is_needed: bool = False) -> str | None:
        """Return why a node is not drawn into this round, or None.

        Args:
            node: its name.
            round_number: the round.
            is_needed: there are not enough nodes without it: whoever has spoken may come back at once.
        """
        entry = self._entry(node)
        if entry.until_round is not None and not (entry.has_spoken and (is_needed or round_number >= entry.until_round)):
            times = "this round" if entry.num_missed == 1 else f"{entry.num_missed} rounds in a row"
            text = f"set aside: nothing of it could be aggregated for {times}"
            return f"{text}; back from round {entry.until_round}" if entry.has_spoken else f"{text}; back when it speaks anew"
        return None if self.is_present(node) else "sits out: its status is old and it has not answered; back when it speaks"

    def take_round(self, round_number: int, *, cohort: Iterable[str], missed: Iterable[str], is_lost: bool) -> list[str]:
        """Take in how a finished round's cohort did; return the nodes that are set aside from now on.

        A round of which nothing came from anybody says nothing of any single node: it is not taken in.

        Args:
            round_number: the round.
            cohort: who was drawn.
            missed: of whom nothing was aggregated, or would have been.
            is_lost: the global model stayed as it was, although enough for a round of their own answered.
        """
        members, failed = set(cohort), set(missed)
        if failed >= members:
            return []
        aside = []
        for node in sorted(members):
            entry = self._entry(node)
            if node not in failed:
                entry.num_missed, entry.until_round = 0, None
                entry.num_useful += 1
                if entry.num_useful >= 2**entry.times_aside:
                    entry.times_aside = 0
                continue
            entry.num_missed += 1
            if is_lost or entry.num_missed >= self._max_missed_rounds:
                entry.num_useful = 0
                entry.until_round = round_number + 1 + min(2**entry.times_aside, MAX_ASIDE_ROUNDS)
                entry.times_aside += 1
                entry.is_present = entry.has_spoken = False
                aside.append(node)
        return aside

    def _entry(self, node: str) -> _Entry:
        return self._entries.setdefault(node, _Entry())
