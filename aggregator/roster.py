"""The nodes of a run as they last described themselves: who is online, who is fit, whose identity is used twice.

Whether such a description is still true, and whether its node answers, is `aggregator/attendance.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from aggregator.attendance import Attendance
from aggregator.cohort import Expectation
from aggregator.events import NodeReported, Note
from federation.messages import NodeStatus

TWIN_SECONDS = 1.0
"""A node that comes back sooner under another instance was thrown out by a twin: no process starts that fast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a node's status shows."""

    notes: list[Note]
    is_twin: bool
    """Two processes have one identity, or one was restarted at once."""


class Roster:
    """The last status of every node. Times are on the coordinator's clock.

    Args:
        expectation: what a node must be like.
        attendance: told of every status.
        min_nodes: with fewer fit nodes, those that were set aside and have spoken since come back before their time.
    """

    def __init__(self, expectation: Expectation, attendance: Attendance, *, min_nodes: int) -> None:
        self._expectation = expectation
        self._attendance = attendance
        self._min_nodes = min_nodes
        self._nodes: dict[str, NodeStatus] = {}
        self._seen_at: dict[str, float] = {}
        self._declared: dict[str, int] = {}

    @property
    def has_online(self) -> bool:
        """Whether any node is online, and not only by a status that nobody stands behind."""
        return any(status.online and self._attendance.is_present(node) for node, status in self._nodes.items())

    def online(self) -> list[str]:
        """Return the nodes that last called themselves online, in node-id order."""
        return sorted(node for node, status in self._nodes.items() if status.online)

    def described_as_fit(self) -> list[str]:
        """Return the nodes that can take part if what they last said of themselves is true, in node-id order."""
        return sorted(node for node, status in self._nodes.items() if self._expectation.unfitness(status) is None)

    def fit(self, round_number: int) -> list[str]:
        """Return the nodes that can take part in a round, in node-id order."""
        described = self.described_as_fit()
        fit = [node for node in described if self._attendance.absence(node, round_number) is None]
        if len(fit) < self._min_nodes:
            fit = [node for node in described if self._attendance.absence(node, round_number, is_needed=True) is None]
        return fit

    def sitting_out(self, round_number: int) -> list[str]:
        """Return why each node that is online can't take part in a round, in node-id order."""
        fit = set(self.fit(round_number))
        reasons = {
            node: self._expectation.unfitness(status) or self._attendance.absence(node, round_number)
            for node, status in sorted(self._nodes.items())
            if status.online and node not in fit
        }
        return [f"{node} {reason}" for node, reason in reasons.items() if reason]

    def declared(self) -> dict[str, int]:
        """Return how many examples each node last said it had."""
        return dict(self._declared)

    def forget(self, node: str) -> None:
        """Know a node no more, until it speaks again."""
        self._nodes.pop(node, None)
        self._seen_at.pop(node, None)
        self._declared.pop(node, None)

    def take(self, event: NodeReported, now: float, *, is_leaving: bool) -> Report | None:
        """Take in a node's status; return what it shows, or None when the status is of no time but the past.

        Args:
            event: the status.
            now: the time.
            is_leaving: the run has ended, and waits for its nodes to leave.
        """
        status = event.status
        before = self._nodes.get(status.node)
        if is_leaving and event.retained and before and before.instance == status.instance and not before.online:
            # It has left; a broker that failed meanwhile only remembers the time before.
            return None
        if before and before.online and not status.online and before.instance != status.instance:
            # The will of a process that a newer one of the same node has replaced.
            return None
        self._nodes[status.node] = status
        if status.online and status.num_examples:
            self._declared[status.node] = status.num_examples
        if status.online and not event.retained:
            self._attendance.hear(status.node)
        notes = []
        is_twin = False
        if before and status.online and before.instance != status.instance and now < self._seen_at[status.node] + TWIN_SECONDS:
            is_twin = True
            text = f"node={status.node} another process has this identity, or it was restarted at once"
            notes.append(Note(text=f"{text}: instance {status.instance} took over from {before.instance}", warning=True))
        # While it is online; from its last word on, that moment.
        self._seen_at[status.node] = float("inf") if status.online else now
        if before != status:
            unfit = self._expectation.unfitness(status)
            notes.append(Note(text=f"node={status.node} {'fit' if unfit is None else unfit}", warning=unfit is not None))
        return Report(notes=notes, is_twin=is_twin)
