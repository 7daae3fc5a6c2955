"""The nodes of a run as the telemetry hears them: who is online, and who has fallen silent. Pure: no clock, no I/O."""

from __future__ import annotations

from collections.abc import Iterator

from federation.condition import NodeCondition, condition_of_node
from federation.messages import NodeStatus


class NodeWatch:
    """The last status of every node, and when it was last heard. Times are seconds on one clock, whichever."""

    def __init__(self) -> None:
        self._statuses: dict[str, NodeStatus] = {}
        self._heard_at: dict[str, float] = {}
        self._reporting: set[str] = set()
        self._shown: dict[str, NodeCondition] = {}

    def __len__(self) -> int:
        """Return how many nodes have described themselves."""
        return len(self._statuses)

    @property
    def num_online(self) -> int:
        """How many are connected."""
        return sum(status.online for status in self._statuses.values())

    @property
    def num_fit(self) -> int:
        """How many are connected and without a problem."""
        return sum(status.online and not status.problem for status in self._statuses.values())

    def status(self, node: str) -> NodeStatus | None:
        """Return a node's last status."""
        return self._statuses.get(node)

    def take_status(self, status: NodeStatus, now: float) -> None:
        """Take in what a node, or its will, says of it."""
        self._statuses[status.node] = status
        self._heard_at[status.node] = now

    def take_report(self, node: str, now: float) -> None:
        """Take in that a node reported something."""
        self._heard_at[node] = now
        self._reporting.add(node)

    def forgive(self, now: float) -> None:
        """Begin anew to wait for every node: until now it was we who heard nothing."""
        for node in self._heard_at:
            self._heard_at[node] = now

    def conditions(self, now: float) -> Iterator[tuple[NodeStatus, NodeCondition]]:
        """Yield every node and what state it is in."""
        for node, status in self._statuses.items():
            condition = self._condition(node, status, now)
            self._shown[node] = condition
            yield status, condition

    def changed(self, now: float) -> Iterator[tuple[NodeStatus, NodeCondition]]:
        """Yield the nodes whose state is another than was last yielded."""
        for node, status in self._statuses.items():
            condition = self._condition(node, status, now)
            if self._shown.get(node) is not condition:
                self._shown[node] = condition
                yield status, condition

    def _condition(self, node: str, status: NodeStatus, now: float) -> NodeCondition:
        # A node that never reports anything (another implementation, perhaps) can't fall silent: its will speaks for it.
        return condition_of_node(status, silent_seconds=now - self._heard_at[node] if node in self._reporting else 0.0)
