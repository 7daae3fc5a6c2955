"""The seam between the machines and MQTT: what a transport is told, and what it reports.

Two transports exist: `federation.mqtt.MqttTransport` and its twin `federation.memory_transport.InMemoryTransport`.
Both are QoS 1 throughout: at least once, in order per publisher, never lost between here and the broker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """The broker took us. Subscribe again unless `session_present`."""

    session_present: bool
    """The broker kept this client's subscriptions and what was queued for it."""
    max_packet_bytes: int | None
    """The broker's Maximum Packet Size; None without a limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected:
    """The link is gone, or could not be made; the transport tries again by itself."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The broker will not have us, and the transport has stopped; `reason` says what to change."""

    reason: str
    identity_taken: bool = False
    """Another client connected under this one's identity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """A message came. It may come twice."""

    topic: str
    payload: bytes
    retained: bool
    """It was stored at the broker before we subscribed."""
    receipt: tuple[int, int] | None = None
    """Connection and packet to acknowledge with `MqttTransport.acknowledge`; None where that is done already."""
    num_property_bytes: int = 0
    """Of its MQTT properties, which the broker keeps with it."""


TransportEvent: TypeAlias = Connected | Disconnected | Refused | Delivered

OnEvent: TypeAlias = Callable[[TransportEvent], None]
"""Takes an event, on the transport's thread. May block for as long as its inbox is full: the broker then waits."""

Payload: TypeAlias = bytes | Callable[[], bytes]
"""Bytes, or what makes them when their turn to be sent comes, so that few payloads are in memory at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Will:
    """What the broker publishes, retained, when this client vanishes without goodbye."""

    topic: str
    payload: bytes


class Transport(Protocol):
    """One client of a broker. Every method may be called from any thread, and none waits but `stop`."""

    @property
    def num_pending(self) -> int:
        """Publishes not yet acknowledged by the broker."""

    def start(self) -> None:
        """Connect in the background, and again whenever the link breaks; events tell how it goes."""

    def subscribe(self, filters: Sequence[str]) -> None:
        """Ask for the messages of topic filters; each subscription delivers what is retained, again when repeated.

        What is asked while not connected, or was not confirmed before the link broke, is asked on the next
        connection. What was confirmed is the session's: without `session_present` the owner asks for it again.
        """

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Ask for no more of them."""

    def publish(self, topic: str, payload: Payload, *, retain: bool = False) -> None:
        """Queue a message; messages leave in the order of these calls, also over lost connections."""

    def drop_pending(self, prefix: str) -> None:
        """Forget publishes under a topic prefix that have not been handed to the broker yet."""

    def stop(self, timeout_seconds: float, *, final: tuple[str, bytes] | None = None) -> None:
        """Send what is pending and then `final` (retained), say goodbye (no will), and end; events cease at once.

        When the time-out comes first the link is cut without goodbye, so that the will speaks in `final`'s place.
        """
