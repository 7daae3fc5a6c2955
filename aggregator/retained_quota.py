"""How much a node may leave on the broker, and what of it must go: pure, fed by the guard.

A broker's access list says which topics a node may write, not how many bytes: `rounds/+/updates/{node}/#` is room
without end. A node is owed one update a round that was planned, of the size of that round's global model.
"""

from __future__ import annotations

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

TOPIC_BYTES = 1024
"""What a retained message costs the broker besides its payload: empty ones by the million must count too."""

FOREIGN = ("-", 0)
"""Stands for the round of topics that are a node's to write but none of the protocol's: never planned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Excess:
    """What one node has left beyond its due."""

    node: str
    topics: tuple[str, ...]
    num_bytes: int
    reason: str


@dataclass(slots=True)
class _Holding:
    """What one node holds: topic -> bytes, by the (run, round) of an update, or of presence."""

    updates: dict[tuple[str, int], dict[str, int]] = field(default_factory=dict)
    presence: dict[str, int] = field(default_factory=dict)


class RetainedQuota:
    """Keeps the books of what nodes have published and says what exceeds their due."""

    def __init__(self) -> None:
        self._planned_bytes: dict[tuple[str, int], int] = {}
        self._holdings: dict[str, _Holding] = {}
        self._unplanned_bytes = 0

    @property
    def is_urgent(self) -> bool:
        """Whether so much has come for rounds nobody planned that a sweep should not wait."""
        return self._unplanned_bytes > UNPLANNED_BYTES

    def note_plan(self, topic_name: str, payload: bytes) -> None:
        """Take in a round's plan; an empty payload takes it back. Anything unreadable is passed over."""
        try:
            topic = topics.parse_topic(topic_name)
            if isinstance(topic, topics.PlanTopic):
                self._note_plan((topic.run, topic.round_number), payload)
        except RemoteProtocolError:
            return

    def note(self, topic_name: str, num_bytes: int) -> None:
        """Take a node's message into the books; one of no bytes clears its topic."""
        try:
            topic: topics.Topic | None = topics.parse_topic(topic_name)
        except RemoteProtocolError:
            topic = None
        match topic:
            case topics.UpdateChunkTopic() | topics.UpdateManifestTopic():
                self._note_update((topic.run, topic.round_number), topic.node, topic_name, num_bytes)
            case topics.StatusTopic() | topics.MetricsTopic():
                _set(self._holding(topic.node).presence, topic_name, num_bytes)
            case _:
                self._note_update(FOREIGN, _writer(topic_name), topic_name, num_bytes)

    def sweep(self) -> list[Excess]:
        """Return what must be cleared, and forget it."""
        self._unplanned_bytes = 0
        found: list[Excess] = []
        for node, holding in list(self._holdings.items()):
            for key, held in list(holding.updates.items()):
                if held and (reason := self._complaint(key, held)):
                    found.append(_excess(node, holding.updates.pop(key), reason))
                elif not held:
                    del holding.updates[key]
            if sum(holding.presence.values()) > PRESENCE_BYTES:
                found.append(_excess(node, holding.presence, f"more than {PRESENCE_BYTES} bytes of status and metrics"))
                holding.presence = {}
            if not holding.updates and not holding.presence:
                del self._holdings[node]
        return found

    def _complaint(self, key: tuple[str, int], held: dict[str, int]) -> str:
        if key == FOREIGN:
            return "topics that are not in the protocol"
        if key not in self._planned_bytes:
            return f"no round {key[1]} of run {key[0]!r} was planned"
        due = int(self._planned_bytes[key] * UPDATE_SLACK) + UPDATE_SPARE_BYTES
        return f"more than {due} bytes in round {key[1]} of run {key[0]!r}" if sum(held.values()) > due else ""

    def _note_update(self, key: tuple[str, int], node: str, topic_name: str, num_bytes: int) -> None:
        _set(self._holding(node).updates.setdefault(key, {}), topic_name, num_bytes)
        if key not in self._planned_bytes:
            self._unplanned_bytes += num_bytes + TOPIC_BYTES

    def _note_plan(self, key: tuple[str, int], payload: bytes) -> None:
        if payload:
            self._planned_bytes[key] = parse(RoundPlan, payload).global_bytes
        else:
            self._planned_bytes.pop(key, None)

    def _holding(self, node: str) -> _Holding:
        return self._holdings.setdefault(node, _Holding())


def _writer(topic_name: str) -> str:
    """Return the node that the access list lets write a topic that is none of the protocol's.

    `fedmq/v1/{run}/rounds/{r}/updates/{node}/...`, `.../nodes/{node}/status` or `.../metrics/{node}`.
    """
    levels = topic_name.split("/")
    place = 6 if levels[3:4] == ["rounds"] else 4
    return levels[place] if len(levels) > place else "-"


def _set(held: dict[str, int], topic_name: str, num_bytes: int) -> None:
    if num_bytes:
        held[topic_name] = num_bytes + TOPIC_BYTES
    else:
        held.pop(topic_name, None)


def _excess(node: str, held: dict[str, int], reason: str) -> Excess:
    return Excess(node=node, topics=tuple(held), num_bytes=sum(held.values()), reason=reason)
