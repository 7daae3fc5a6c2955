"""The nodes of a run as they last described themselves: who is online, who is fit, whose identity is used twice."""

from __future__ import annotations

from dataclasses import dataclass

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
    """The last status of every node. Times are on the coordinator's clock."""

    def __init__(self, expectation: Expectation) -> None:
        self._expectation = expectation
        self._nodes: dict[str, NodeStatus] = {}
        self._seen_at: dict[str, float] = {}

    @property
    def has_online(self) -> bool:
        """Whether any node is online."""
        return any(status.online for status in self._nodes.values())

    def fit(self) -> list[str]:
        """Return the nodes that can take part now, in node-id order."""
        return sorted(node for node, status in self._nodes.items() if self._expectation.unfitness(status) is None)

    def sitting_out(self) -> list[str]:
        """Return why each node that is online can't take part, in node-id order."""
        reasons = {node: self._expectation.unfitness(status) for node, status in sorted(self._nodes.items()) if status.online}
        return [f"{node} {reason}" for node, reason in reasons.items() if reason]

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
