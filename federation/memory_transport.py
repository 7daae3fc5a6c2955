"""An in-memory twin of broker and transport: behaves like Mosquitto at QoS 1, breaks on demand, has no threads.

    broker = InMemoryBroker()
    transport = InMemoryTransport(broker, client_id="node-0", on_event=inbox.append)
    transport.start()
    broker.deliver()  # carries everything until nothing moves any more, in the same order every time

tests/wire runs one suite of behaviour against this and against Mosquitto.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from threading import RLock
from types import MappingProxyType

from federation.broker_address import IDENTITY_TAKEN
from federation.faults import Faults
from federation.outbox import Outbox, Publish
from federation.subscriptions import Subscriptions
from federation.topic_filter import matches
from federation.transport import Connected, Delivered, Disconnected, OnEvent, Payload, Refused, TransportEvent, Will

MAX_QUEUED_MESSAGES = 100_000
"""As in broker/mosquitto.conf; Mosquitto's own default is 1000."""

NUM_REMEMBERED = 32
"""Publishes that `sever` can leave unacknowledged: the window of the real transport."""


class InMemoryTransport:
    """One client of an `InMemoryBroker`. Implements `federation.transport.Transport`."""

    def __init__(self, broker: InMemoryBroker, *, client_id: str, on_event: OnEvent, will: Will | None = None) -> None:
        self._broker = broker
        self._link = _Link(client_id=client_id, on_event=on_event, will=will)

    @property
    def num_pending(self) -> int:
        """Publishes not yet acknowledged by the broker."""
        return self._link.outbox.num_pending

    def start(self) -> None:
        """Connect at the broker's next `deliver`."""
        self._broker._attach(self._link)  # noqa: SLF001 - the two are one machine

    def subscribe(self, filters: Sequence[str]) -> None:
        """Ask for the messages of topic filters; while not connected, as soon as we are."""
        self._link.subscriptions.ask(filters, wanted=True)

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Ask for no more of them."""
        self._link.subscriptions.ask(filters, wanted=False)

    def publish(self, topic: str, payload: Payload, *, retain: bool = False) -> None:
        """Queue a message; messages leave in the order of these calls."""
        self._link.outbox.put(Publish(topic=topic, payload=payload, retain=retain))

    def drop_pending(self, prefix: str) -> None:
        """Forget publishes under a topic prefix that the broker has not taken yet."""
        self._link.outbox.drop(prefix)

    def stop(self, timeout_seconds: float, *, final: tuple[str, bytes] | None = None) -> None:  # noqa: ARG002 - no clock here
        """Give the broker what is pending and then `final`, if connected, and end; events cease at once."""
        self._link.outbox.close(Publish(topic=final[0], payload=final[1], retain=True) if final else None)
        self._broker._detach(self._link)  # noqa: SLF001 - the two are one machine


class InMemoryBroker:
    """Routes messages between transports, when told to.

    Args:
        max_packet_bytes: Maximum Packet Size told to clients; None without a limit.
        max_queued_messages: what one session queues, retained messages included; more is dropped and counted.
        faults: what goes wrong on the way to subscribers.
        retained_seed: of the order in which a new subscription gets retained messages. MQTT 5 orders messages of one topic
            only (section 4.6), and brokers differ: Mosquitto walks its tree, HiveMQ may send the newest first.
    """

    def __init__(
        self,
        *,
        max_packet_bytes: int | None = None,
        max_queued_messages: int = MAX_QUEUED_MESSAGES,
        faults: Faults | None = None,
        retained_seed: int = 0,
    ) -> None:
        self.faults = faults or Faults()
        self.num_dropped = 0
        """Copies dropped, for a full queue or by a fault."""
        self._retained_order = Random(retained_seed)  # noqa: S311 - an order, not a secret
        self._max_packet_bytes = max_packet_bytes
        self._max_queued_messages = max_queued_messages
        self._retained: dict[str, bytes] = {}
        self._sessions: dict[str, _Session] = {}
        self._links: list[_Link] = []
        self._is_running = True
        self._is_delivering = False
        self._lock = RLock()

    @property
    def retained(self) -> Mapping[str, bytes]:
        """The retained payloads by topic."""
        return MappingProxyType(self._retained)

    def clear(self, topic: str) -> None:
        """Forget a retained payload, as a broker does whose file was lost."""
        self._retained.pop(topic, None)

    def deliver(self, max_events: int | None = None) -> int:
        """Carry publishes and deliveries until nothing moves, or so many events were delivered; return how many were."""
        with self._lock:
            if self._is_delivering:
                return 0  # called by an on_event: the call above it goes on
            self._is_delivering = True
        num_events = 0
        try:
            while True:
                has_moved = False
                for link in sorted(self._links, key=lambda link: link.client_id):
                    with self._lock:
                        has_moved |= self._serve(link)
                    while (max_events is None or num_events < max_events) and (event := self._next_event(link)) is not None:
                        link.on_event(event)
                        num_events += 1
                        has_moved = True
                if not has_moved or num_events == max_events:
                    return num_events
        finally:
            self._is_delivering = False

    def sever(self, client_id: str, *, num_unacknowledged: int = 0) -> None:
        """Cut a client's link until `mend`: its will is published, its session queues.

        Args:
            client_id: whose link.
            num_unacknowledged: its last publishes whose acknowledgement got lost: it sends them again after `mend`.
        """
        with self._lock:
            for link in self._links_of(client_id):
                link.is_severed = True
                if link.is_connected:
                    link.lose("the link was cut")
                    link.resend = list(link.recent)[len(link.recent) - num_unacknowledged :]
                    self._publish_will(link)

    def mend(self, client_id: str) -> None:
        """Let a severed client connect again."""
        with self._lock:
            for link in self._links_of(client_id):
                link.is_severed = False

    def stop(self) -> None:
        """Vanish as by SIGKILL: no wills, every client loses its link."""
        with self._lock:
            self._is_running = False
            for link in self._links:
                if link.is_connected:
                    link.lose("the broker is gone")

    def restart(self, *, persistence: bool = True, keeps_sessions: bool = True) -> None:
        """Come back.

        Args:
            persistence: with what was retained, and the sessions.
            keeps_sessions: False: without them all the same. Mosquitto 2.0 saves none that began with a clean start.
        """
        with self._lock:
            self.stop()
            if not persistence:
                self._retained.clear()
            if not (persistence and keeps_sessions):
                self._sessions.clear()
            self._is_running = True

    def expire_session(self, client_id: str) -> None:
        """Forget an absent client's session, as when its expiry has passed."""
        with self._lock:
            if not any(link.is_connected for link in self._links_of(client_id)):
                self._sessions.pop(client_id, None)

    def _attach(self, link: _Link) -> None:
        with self._lock:
            if link not in self._links:
                self._links.append(link)

    def _detach(self, link: _Link) -> None:
        with self._lock:
            if link in self._links:
                self._serve(link)
                while link.is_connected and link.outbox.num_pending:
                    self._serve(link)
                self._links.remove(link)
                if link.is_connected:
                    self._sessions.pop(link.client_id, None)
                    link.is_connected = False
            link.notices.clear()
            link.has_ended = True

    def _serve(self, link: _Link) -> bool:
        """Connect a client, or take its wishes and one publish; True when there was something to do."""
        if link.has_ended or not self._is_running or link.is_severed:
            return False
        if not link.is_connected:
            self._connect(link)
            return True
        session = self._sessions[link.client_id]
        has_moved = False
        for wanted, filters in link.subscriptions.take():
            has_moved = True
            for topic_filter in filters:
                if wanted:
                    self._subscribe(session, topic_filter)
                else:
                    session.filters.pop(topic_filter, None)
        if link.resend:
            self._route(*link.resend.pop(0))
            return True
        if (taken := link.outbox.take(self._max_packet_bytes)) is not None:
            publish, payload = taken
            link.recent.append((publish.topic, payload, publish.retain))
            self._route(publish.topic, payload, publish.retain)
            link.outbox.finish_one()
            has_moved = True
        return has_moved

    def _connect(self, link: _Link) -> None:
        for other in self._links_of(link.client_id):
            if other is not link and other.is_connected:
                other.lose("another client has this identity")
                other.notices[-1] = Refused(reason=IDENTITY_TAKEN, identity_taken=True)
                other.has_ended = True  # without its will: Mosquitto 2.0 drops it here
        if not link.was_connected:
            self._sessions.pop(link.client_id, None)  # clean start, on the first connection only
        session_present = link.client_id in self._sessions
        self._sessions.setdefault(link.client_id, _Session(client_id=link.client_id))
        link.is_connected = link.was_connected = True
        link.notices.append(Connected(session_present=session_present, max_packet_bytes=self._max_packet_bytes))

    def _subscribe(self, session: _Session, topic_filter: str) -> None:
        session.filters[topic_filter] = None
        found = [topic for topic in sorted(self._retained) if matches(topic_filter, topic)]
        self._retained_order.shuffle(found)
        for topic in found:
            self._queue(session, Delivered(topic=topic, payload=self._retained[topic], retained=True))

    def _route(self, topic: str, payload: bytes, retain: bool) -> None:  # noqa: FBT001 - the flag of the packet
        if retain and payload:
            self._retained[topic] = payload
        elif retain:
            self._retained.pop(topic, None)
        for _, session in sorted(self._sessions.items()):
            if any(matches(topic_filter, topic) for topic_filter in session.filters):
                self._queue(session, Delivered(topic=topic, payload=payload, retained=False))

    def _queue(self, session: _Session, event: Delivered) -> None:
        if len(session.queue) >= self._max_queued_messages or self.faults.drop(session.client_id, event.topic):
            self.num_dropped += 1
            return
        session.queue.append(event)
        if self.faults.duplicate(session.client_id, event.topic):
            session.queue.append(event)

    def _publish_will(self, link: _Link) -> None:
        if link.will is not None:
            self._route(link.will.topic, link.will.payload, retain=True)

    def _next_event(self, link: _Link) -> TransportEvent | None:
        with self._lock:
            if link.notices:
                return link.notices.popleft()
            session = self._sessions.get(link.client_id) if link.is_connected else None
            if session is None or not session.queue:
                return None
            index = self.faults.pick(link.client_id, len(session.queue))
            event = session.queue[index]
            del session.queue[index]
            return event

    def _links_of(self, client_id: str) -> list[_Link]:
        return [link for link in self._links if link.client_id == client_id]


@dataclass(slots=True, kw_only=True, eq=False)
class _Session:
    """What the broker keeps of a client, connected or away."""

    client_id: str
    filters: dict[str, None] = field(default_factory=dict)
    queue: deque[Delivered] = field(default_factory=deque)


@dataclass(slots=True, kw_only=True, eq=False)
class _Link:
    """One transport's end of the line."""

    client_id: str
    on_event: OnEvent
    will: Will | None
    outbox: Outbox = field(default_factory=Outbox)
    subscriptions: Subscriptions = field(default_factory=Subscriptions)
    notices: deque[TransportEvent] = field(default_factory=deque)
    recent: deque[tuple[str, bytes, bool]] = field(default_factory=lambda: deque(maxlen=NUM_REMEMBERED))
    resend: list[tuple[str, bytes, bool]] = field(default_factory=list)
    is_connected: bool = False
    was_connected: bool = False
    is_severed: bool = False
    has_ended: bool = False

    def lose(self, reason: str) -> None:
        self.is_connected = False
        self.notices.append(Disconnected(reason=reason))
