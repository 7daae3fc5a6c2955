"""How much a node may leave on the broker, and what of it must go: pure, fed by the guard.

A broker's access list says which topics a node may write, not how many bytes: `rounds/+/updates/{node}/chunks/+` is room
without end, and each `+` a name of up to 64 KB. A node is owed one update a round that was planned, of the size of that
round's global model. What is none of the protocol's goes at once and is only counted, so that the books stay small
whatever the broker holds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from federation import topics
from federation.errors import RemoteProtocolError
from federation.messages import RoundPlan, parse

UPDATE_SLACK = 1.25
"""An update is as large as the global model; this much more covers encodings and a changed chunk size."""

UPDATE_SPARE_BYTES = 1 << 20
"""Manifests, and the chunks of a model of a few bytes."""

UNPLANNED_BYTES = 16 << 20
"""Above it a sweep does not wait for its time: what a fast link brings in about a tenth of a second."""

PRESENCE_BYTES = 8 << 20
"""Status and metrics of one node over all runs; a status is under 1 KiB, metrics are not retained."""

MAX_PRESENCE_TOPICS = 100
"""Runs in which one node may have a status; beyond it, those of runs that nobody leads go."""

TOPIC_BYTES = 1024
"""What a retained message costs the broker besides what it holds: empty ones by the million must count too."""

NUM_TOPIC_COPIES = 2
"""Mosquitto keeps a retained message's topic whole, and once more level by level."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Excess:
    """What one node has left beyond its due."""

    node: str
    topics: tuple[str, ...] = ()
    """To be cleared; empty where each was named as it came."""
    num_topics: int
    num_bytes: int
    reason: str


@dataclass(slots=True)
class _Held:
    """Topics and what each costs, with their sum."""

    costs: dict[str, int] = field(default_factory=dict)
    num_bytes: int = 0

    def set(self, topic_name: str, cost: int) -> None:
        """Take in what a topic holds now; 0: nothing."""
        self.num_bytes += cost - self.costs.pop(topic_name, 0)
        if cost:
            self.costs[topic_name] = cost


@dataclass(slots=True)
class _Holding:
    """What one node holds: by the (run, round) of an update, and presence."""

    updates: dict[tuple[str, int], _Held] = field(default_factory=dict)
    presence: _Held = field(default_factory=_Held)


class RetainedQuota:
    """Keeps the books of what nodes have published and says what exceeds their due."""

    def __init__(self) -> None:
        self._planned_bytes: dict[tuple[str, int], int] = {}
        self._runs: set[str] = set()
        self._holdings: dict[str, _Holding] = {}
        self._unplanned_bytes = 0
        self._has_excess = False
        self._num_foreign: Counter[str] = Counter()
        self._foreign_bytes: Counter[str] = Counter()

    @property
    def is_urgent(self) -> bool:
        """Whether a sweep should not wait: a node is beyond its due, or much has come for rounds nobody planned."""
        return self._has_excess or self._unplanned_bytes > UNPLANNED_BYTES

    def note_own(self, topic_name: str, payload: bytes) -> None:
        """Take in a run's state or a round's plan; an empty payload takes it back. Anything unreadable is passed over."""
        try:
            match topics.parse_topic(topic_name):
                case topics.PlanTopic(run=run, round_number=number):
                    self._note_plan((run, number), payload)
                case topics.StateTopic(run=run):
                    (self._runs.add if payload else self._runs.discard)(run)
        except RemoteProtocolError:
            return

    def note(self, topic_name: str, num_bytes: int, num_property_bytes: int = 0) -> bool:
        """Take a node's message into the books; one of no bytes clears its topic.

        Returns:
            True where nothing may be under this topic: clear it now. It is counted, and not kept.
        """
        cost = num_bytes and num_bytes + num_property_bytes + NUM_TOPIC_COPIES * len(topic_name) + TOPIC_BYTES
        try:
            topic = topics.parse_topic(topic_name)
        except RemoteProtocolError:
            topic = None
        match topic:
            case topics.UpdateChunkTopic() | topics.UpdateManifestTopic():
                self._note_update((topic.run, topic.round_number), topic.node, topic_name, cost)
            case topics.StatusTopic() | topics.MetricsTopic():
                presence = self._holding(topic.node).presence
                presence.set(topic_name, cost)
                self._has_excess |= _is_too_present(presence)
            case _ if cost:
                node = _writer(topic_name)
                self._num_foreign[node] += 1
                self._foreign_bytes[node] += cost
                return True
        return False

    def sweep(self) -> list[Excess]:
        """Return what must be cleared, and forget it."""
        self._unplanned_bytes, self._has_excess = 0, False
        found = [
            Excess(node=node, num_topics=count, num_bytes=self._foreign_bytes[node], reason="topics that are not in the protocol")
            for node, count in self._num_foreign.items()
        ]
        self._num_foreign.clear()
        self._foreign_bytes.clear()
        for node, holding in list(self._holdings.items()):
            for key, held in list(holding.updates.items()):
                if held.costs and (reason := self._complaint(key, held)):
                    found.append(_excess(node, holding.updates.pop(key).costs, reason))
                elif not held.costs:
                    del holding.updates[key]
            if _is_too_present(holding.presence):
                found.append(self._absent(node, holding))
            if not holding.updates and not holding.presence.costs:
                del self._holdings[node]
        return found

    def _complaint(self, key: tuple[str, int], held: _Held) -> str:
        if key not in self._planned_bytes:
            return f"no round {key[1]} of run {key[0]!r} was planned"
        due = self._due(key)
        return f"more than {due} bytes in round {key[1]} of run {key[0]!r}" if held.num_bytes > due else ""

    def _due(self, key: tuple[str, int]) -> int:
        return int(self._planned_bytes[key] * UPDATE_SLACK) + UPDATE_SPARE_BYTES

    def _absent(self, node: str, holding: _Holding) -> Excess:
        """Take out what a node says in runs that nobody leads; all of it where that does not suffice."""
        reason = f"more than {MAX_PRESENCE_TOPICS} topics or {PRESENCE_BYTES} bytes of status and metrics"
        led = {name: cost for name, cost in holding.presence.costs.items() if name.split("/")[2] in self._runs}
        gone = {name: cost for name, cost in holding.presence.costs.items() if name not in led}
        holding.presence = _Held(led, sum(led.values()))
        if _is_too_present(holding.presence):
            gone, holding.presence = gone | led, _Held()
        return _excess(node, gone, reason)

    def _note_update(self, key: tuple[str, int], node: str, topic_name: str, cost: int) -> None:
        held = self._holding(node).updates.setdefault(key, _Held())
        held.set(topic_name, cost)
        if key not in self._planned_bytes:
            self._unplanned_bytes += cost
        elif held.num_bytes > self._due(key):
            self._has_excess = True

    def _note_plan(self, key: tuple[str, int], payload: bytes) -> None:
        if payload:
            self._planned_bytes[key] = parse(RoundPlan, payload).global_bytes
        else:
            self._planned_bytes.pop(key, None)

    def _holding(self, node: str) -> _Holding:
        return self._holdings.setdefault(node, _Holding())


def _is_too_present(held: _Held) -> bool:
    return held.num_bytes > PRESENCE_BYTES or len(held.costs) > MAX_PRESENCE_TOPICS


def _writer(topic_name: str) -> str:
    """Return the node that the access list lets write a topic that is none of the protocol's.

    `fedmq/v2/{run}/rounds/{r}/updates/{node}/...`, `.../nodes/{node}/status` or `.../metrics/{node}`.
    """
    levels = topic_name.split("/")
    place = 6 if levels[3:4] == ["rounds"] else 4
    return levels[place][:63] if len(levels) > place else "-"


def _excess(node: str, costs: dict[str, int], reason: str) -> Excess:
    return Excess(node=node, topics=tuple(costs), num_topics=len(costs), num_bytes=sum(costs.values()), reason=reason)
