"""The broker's own figures: Mosquitto's `$SYS` topics as one point."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

FIELD_OF_TOPIC: Mapping[str, str] = MappingProxyType(
    {
        "$SYS/broker/clients/connected": "clients_connected",
        "$SYS/broker/clients/total": "clients_total",
        "$SYS/broker/messages/received": "messages_received",
        "$SYS/broker/messages/sent": "messages_sent",
        "$SYS/broker/publish/messages/dropped": "messages_dropped",
        "$SYS/broker/store/messages/count": "messages_stored",
        "$SYS/broker/store/messages/bytes": "stored_bytes",
        "$SYS/broker/retained messages/count": "retained_messages",
        "$SYS/broker/bytes/received": "bytes_received",
        "$SYS/broker/bytes/sent": "bytes_sent",
        "$SYS/broker/subscriptions/count": "subscriptions",
        "$SYS/broker/uptime": "uptime_seconds",
    }
)

MAX_PAYLOAD_BYTES = 64
"""A number, or `12345 seconds`."""


class BrokerFigures:
    """The last value of each figure."""

    def __init__(self) -> None:
        self._values: dict[str, int] = {}
        self._is_fresh = False

    def take(self, topic: str, payload: bytes) -> None:
        """Keep a `$SYS` value; what is no number is left out."""
        digits = payload[:MAX_PAYLOAD_BYTES].split(b" ", 1)[0]
        if topic in FIELD_OF_TOPIC and digits.isdigit():
            self._values[FIELD_OF_TOPIC[topic]] = int(digits)
            self._is_fresh = True

    def sample(self) -> dict[str, int]:
        """Return the fields of a `broker` point; empty while nothing new came."""
        if not self._is_fresh:
            return {}
        self._is_fresh = False
        fields = dict(self._values)
        if {"messages_stored", "retained_messages"} <= fields.keys():
            # Each `$SYS` topic is retained and stored itself; Mosquitto counts them in both.
            fields["queued_messages"] = max(0, fields["messages_stored"] - fields["retained_messages"])
        return fields
