"""Steps of the protocol, seen on the wire: a link strikes the process behind it when one comes.

before:update-chunk:2     as the second chunk of an update is about to leave this machine
after:result:1            shortly after the first result has left
received:plan:3           as the third plan arrives
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, cast

from federation import topics
from federation.errors import RemoteProtocolError

AFTER_SECONDS = 0.02
"""From a packet's departure until the strike: on loopback the broker has the message by then."""

KINDS = (
    "state",
    "status",
    "plan",
    "global-chunk",
    "global-manifest",
    "strategy-chunk",
    "strategy-manifest",
    "update-chunk",
    "update-manifest",
    "ack",
    "result",
    "metrics",
    "control",
)
"""Names of the topics: `topics.GlobalChunkTopic` is `global-chunk`."""

Moment: TypeAlias = Literal["before", "after", "received"]

_STEP = re.compile(r"(before|after|received):([a-z-]+):([1-9][0-9]{0,5})")
_PUBLISH = 3


@dataclass(slots=True, kw_only=True)
class ProtocolStep:
    """One step, counted from 1."""

    moment: Moment
    kind: str
    count: int
    strike: Callable[[], None]
    swallows: bool
    """Whether the packet at which it strikes `before` never leaves, because its process is dead."""
    _num_seen: int = field(default=0)

    def is_due(self, direction: Literal["up", "down"], topic: str) -> bool:
        """Return whether this message is the one."""
        if (direction == "down") != (self.moment == "received") or kind_of(topic) != self.kind:
            return False
        self._num_seen += 1
        return self._num_seen == self.count


def parse_step(text: str, strike: Callable[[], None], *, swallows: bool) -> ProtocolStep:
    """Return the step that a text names."""
    match = _STEP.fullmatch(text)
    assert match is not None, text
    assert match.group(2) in KINDS, text
    moment = cast("Moment", match.group(1))
    return ProtocolStep(moment=moment, kind=match.group(2), count=int(match.group(3)), strike=strike, swallows=swallows)


def kind_of(topic: str) -> str:
    """Return a topic's kind, empty for a foreign one."""
    try:
        name = type(topics.parse_topic(topic)).__name__
    except RemoteProtocolError:
        return ""
    return re.sub(r"(?<!^)([A-Z])", r"-\1", name.removesuffix("Topic")).lower()


class PacketReader:
    """Divides one direction of an MQTT connection into its packets (MQTT 5.0, section 2.1)."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, str]]:
        """Yield each packet that is whole now, with its topic; an empty one for anything but PUBLISH."""
        self._pending += data
        while (length := _packet_length(self._pending)) is not None and length <= len(self._pending):
            packet = bytes(self._pending[:length])
            del self._pending[:length]
            yield packet, _topic_of(packet)


def _packet_length(data: bytearray) -> int | None:
    """Return the length of the packet that these bytes begin, None while too few are there."""
    remaining, shift = 0, 0
    for position in range(1, 5):
        if position >= len(data):
            return None
        remaining |= (data[position] & 0x7F) << shift
        shift += 7
        if not data[position] & 0x80:
            return position + 1 + remaining
    return len(data)  # no MQTT: pass it on as it is


def _topic_of(packet: bytes) -> str:
    if packet[0] >> 4 != _PUBLISH:
        return ""
    start = 1
    while packet[start] & 0x80:
        start += 1
    length = int.from_bytes(packet[start + 1 : start + 3], "big")
    return packet[start + 3 : start + 3 + length].decode("utf-8", errors="replace")


def as_duplicate(packet: bytes) -> bytes:
    """Return a PUBLISH with its DUP flag set (section 3.3.1.1); other packets as they are."""
    return bytes([packet[0] | 0x08]) + packet[1:] if packet[0] >> 4 == _PUBLISH else packet
