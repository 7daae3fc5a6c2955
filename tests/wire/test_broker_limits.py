"""What a broker's CONNACK says it can't do, by CONNACKs of our own making: no broker at hand states these."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from federation.broker_address import BrokerAddress
from federation.mqtt import MqttTransport
from federation.subscriptions import MAX_ASKED, Subscriptions
from federation.transport import Connected, Refused, TransportEvent
from tests.wire.places import wait_until

MAXIMUM_QOS = 0x24
RETAIN_AVAILABLE = 0x25
MAXIMUM_PACKET_SIZE = 0x27
WILDCARD_SUBSCRIPTION_AVAILABLE = 0x28
"""Properties of CONNACK (MQTT 5, section 2.2.2.2)."""


def connack(*properties: bytes) -> bytes:
    """Return a CONNACK that lets a client in."""
    body = b"".join(properties)
    return bytes([0x20, 3 + len(body), 0, 0, len(body)]) + body


def read_packet(link: socket.socket) -> tuple[int, bytes]:
    """Return the next packet's first byte and its body."""
    kind, length, shift = _read(link, 1)[0], 0, 0
    while True:
        digit = _read(link, 1)[0]
        length |= (digit & 0x7F) << shift
        shift += 7
        if digit < 0x80:
            return kind, _read(link, length)


def _read(link: socket.socket, num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes:
        part = link.recv(num_bytes - len(data))
        if not part:
            raise EOFError
        data += part
    return data


@contextmanager
def client_of(server: socket.socket) -> Iterator[tuple[MqttTransport, list[TransportEvent]]]:
    """Give a started client of a listening socket, and what it reports."""
    events: list[TransportEvent] = []
    address = BrokerAddress(host="127.0.0.1", port=server.getsockname()[1])
    transport = MqttTransport(address, client_id="limits", on_event=events.append)
    transport.start()
    try:
        yield transport, events
    finally:
        transport.stop(0.0)


@contextmanager
def accepted(server: socket.socket, answer: bytes) -> Iterator[socket.socket]:
    """Take the client's next connection, and answer its CONNECT."""
    link, _ = server.accept()
    with link:
        link.settimeout(30.0)
        assert read_packet(link)[0] == 0x10
        link.sendall(answer)
        yield link


@pytest.mark.parametrize(
    ("stated", "sentence"),
    [
        (bytes([RETAIN_AVAILABLE, 0]), "the broker keeps no retained messages"),
        (bytes([MAXIMUM_QOS, 0]), "the broker acknowledges nothing"),
        (bytes([WILDCARD_SUBSCRIPTION_AVAILABLE, 0]), "the broker takes no topic filters with wildcards"),
    ],
)
def test_a_broker_that_can_not_carry_rounds_is_refused_with_a_sentence(stated: bytes, sentence: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, client_of(server) as (_, events), accepted(server, connack(stated)):
        wait_until(lambda: bool(events))
    assert isinstance(events[0], Refused)
    assert events[0].reason.startswith(sentence)


@pytest.mark.parametrize("size", [268_435_455, 268_435_456, 2**32 - 1])
def test_any_stated_packet_size_is_read(size: int) -> None:
    """Paho 2.2.0 calls a CONNACK of 268,435,456 bytes and more malformed."""
    answer = connack(bytes([MAXIMUM_PACKET_SIZE]) + size.to_bytes(4, "big"))
    with socket.create_server(("127.0.0.1", 0)) as server, client_of(server) as (_, events), accepted(server, answer):
        wait_until(lambda: bool(events))
    assert events == [Connected(session_present=False, max_packet_bytes=268_435_455)]


def test_the_brokers_own_topics_are_done_without_where_asking_for_them_ends_the_link() -> None:
    """As on rumqttd 0.20: the others are asked for in a packet of their own, and again."""
    subscriptions = Subscriptions()
    for _ in range(MAX_ASKED):
        subscriptions.ask(["$SYS/broker/uptime", "fedmq/v2/run/state"], wanted=True)
        packets = subscriptions.take()
        assert packets == [(True, ["fedmq/v2/run/state"]), (True, ["$SYS/broker/uptime"])]
        for packet_id, (wanted, filters) in enumerate(packets):
            subscriptions.sent(packet_id, wanted=wanted, filters=filters)
        assert subscriptions.confirm(0) == ["fedmq/v2/run/state"]
        subscriptions.forget_confirmations()
    subscriptions.ask(["$SYS/broker/uptime", "fedmq/v2/run/state"], wanted=True)
    assert subscriptions.take() == [(True, ["fedmq/v2/run/state"])]
