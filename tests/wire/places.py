"""Places to test a transport in: around an in-memory broker, and around a real one."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from federation.memory_transport import InMemoryBroker, InMemoryTransport
from federation.mqtt import BrokerAddress, MqttTransport
from federation.transport import Connected, Delivered, Transport, TransportEvent, Will
from fedmq.private_broker import PrivateBroker
from tests.brokers.ejabberd import EjabberdBroker

MAX_PACKET_BYTES = 4 << 20
"""As in broker/mosquitto.conf."""

PATIENCE_SECONDS = 60.0
"""Nothing waits this long unless it is broken; a back-off of several attempts fits."""

E = TypeVar("E", bound=TransportEvent)


class Place(Protocol):
    """A broker, its clients, and ways to break it."""

    run: str

    def client(self, name: str, *, will: bytes | None = None, window: int = 32) -> Client:
        """Return a client named after its user, not started; a will goes to its status topic."""

    def wait(self, is_done: Callable[[], bool]) -> None:
        """Let everything move until the condition holds; fail when it never does."""

    def sever(self, client: Client) -> None:
        """Break a client's link as a cut cable would."""

    def stop_broker(self) -> None:
        """Take the broker away; what it holds stays on its disk."""

    def start_broker(self) -> None:
        """Bring it back."""


@dataclass(kw_only=True)
class Inbox:
    """Takes a transport's events."""

    run: str
    events: list[TransportEvent] = field(default_factory=list)
    reactions: dict[str, Callable[[], None]] = field(default_factory=dict)

    def put(self, event: TransportEvent) -> None:
        """Keep an event, and react to it."""
        self.events.append(event)
        if isinstance(event, Delivered) and (react := self.reactions.get(event.topic.removeprefix(f"fedmq/v2/{self.run}/"))):
            react()


@dataclass(kw_only=True, eq=False)
class Client:
    """A transport and what it reported."""

    name: str
    place: Place
    transport: Transport
    inbox: Inbox

    @property
    def events(self) -> list[TransportEvent]:
        """What was reported so far."""
        return list(self.inbox.events)

    @property
    def reactions(self) -> dict[str, Callable[[], None]]:
        """What to do, within the event, when a topic of this run is delivered."""
        return self.inbox.reactions

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of one kind so far."""
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def topics(self) -> list[str]:
        """The topics delivered so far, without the run's prefix."""
        return [event.topic.removeprefix(f"fedmq/v2/{self.place.run}/") for event in self.of(Delivered)]

    def connect(self) -> Client:
        """Start, and wait until connected."""
        self.transport.start()
        self.place.wait(lambda: bool(self.of(Connected)))
        return self

    def follow(self, *filters: str) -> Client:
        """Subscribe below the run's prefix, and wait until the broker has confirmed it."""
        self.transport.subscribe([self.topic(name) for name in filters])
        self.place.wait(lambda: _is_settled(self.transport))
        return self

    def topic(self, name: str) -> str:
        """Return a topic of this run."""
        return f"fedmq/v2/{self.place.run}/{name}"

    def publish(self, name: str, payload: bytes | Callable[[], bytes], *, retain: bool = False) -> None:
        """Publish below the run's prefix."""
        self.transport.publish(self.topic(name), payload, retain=retain)

    def flush(self) -> None:
        """Wait until the broker has everything published."""
        self.place.wait(lambda: self.transport.num_pending == 0)


class MemoryPlace:
    """An in-memory broker, delivered by hand."""

    def __init__(self) -> None:
        self.run = "run"
        self.broker = InMemoryBroker(max_packet_bytes=MAX_PACKET_BYTES)
        self._severed: set[str] = set()

    def client(self, name: str, *, will: bytes | None = None, window: int = 32) -> Client:  # noqa: ARG002 - no window here
        """Return a client."""
        inbox = Inbox(run=self.run)
        transport = InMemoryTransport(self.broker, client_id=name, on_event=inbox.put, will=_will(self.run, name, will))
        return Client(name=name, place=self, transport=transport, inbox=inbox)

    def wait(self, is_done: Callable[[], bool]) -> None:
        """Deliver; the links cut before come back first, as they would with time."""
        while self._severed:
            self.broker.mend(self._severed.pop())
        self.broker.deliver()
        assert is_done()

    def sever(self, client: Client) -> None:
        """Cut a link."""
        self.broker.sever(client.name)
        self._severed.add(client.name)

    def stop_broker(self) -> None:
        """Stop the broker."""
        self.broker.stop()

    def start_broker(self) -> None:
        """Start the broker."""
        self.broker.restart(keeps_sessions=False)

    def close(self) -> None:
        """Nothing runs here."""


class BrokerPlace:
    """A real broker and real sockets."""

    def __init__(self, broker: PrivateBroker | EjabberdBroker, run: str) -> None:
        self.run = run
        self.broker = broker
        self._clients: list[Client] = []

    def client(self, name: str, *, will: bytes | None = None, window: int = 32) -> Client:
        """Return a client that logs in as the user of that name."""
        inbox = Inbox(run=self.run)
        transport = MqttTransport(
            address_of(self.broker, name),
            client_id=f"{self.run}-{name}",
            on_event=inbox.put,
            will=_will(self.run, name, will),
            window=window,
        )
        client = Client(name=name, place=self, transport=transport, inbox=inbox)
        self._clients.append(client)
        return client

    def wait(self, is_done: Callable[[], bool]) -> None:
        """Wait."""
        wait_until(is_done)

    def sever(self, client: Client) -> None:
        """Shut the client's socket down under it."""
        assert isinstance(client.transport, MqttTransport)
        link = client.transport._client.socket()
        assert isinstance(link, socket.socket)
        link.shutdown(socket.SHUT_RDWR)

    def stop_broker(self) -> None:
        """Stop the broker; it writes out what it holds."""
        self.broker.stop()

    def start_broker(self) -> None:
        """Start the broker."""
        self.broker.start()

    def close(self) -> None:
        """End every client."""
        for client in self._clients:
            client.transport.stop(5.0)


def wait_until(is_done: Callable[[], bool]) -> None:
    """Wait until a condition holds; fail when it does not for far longer than anything takes."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not is_done():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.005)


def address_of(broker: PrivateBroker | EjabberdBroker, user: str) -> BrokerAddress:
    """Return how a user reaches a private broker."""
    return BrokerAddress(host=broker.host, port=broker.port, username=user, password=broker.passwords[user])


def _is_settled(transport: Transport) -> bool:
    if not isinstance(transport, MqttTransport):
        return True
    subscriptions = transport._session._subscriptions
    return not (subscriptions._asked or subscriptions._unconfirmed)


def _will(run: str, name: str, payload: bytes | None) -> Will | None:
    return None if payload is None else Will(topic=f"fedmq/v2/{run}/nodes/{name}/status", payload=payload)
