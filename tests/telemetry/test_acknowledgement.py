"""With manual acknowledgement the broker keeps a message until it is said to be safe, across processes."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aggregator.record import RunRecord
from aggregator.telemetry import Telemetry
from federation.broker_address import BrokerAddress
from federation.mqtt import MqttTransport
from federation.process import SYSTEM_CLOCK
from federation.settings import parse_settings
from federation.transport import Connected, Delivered, OnEvent, TransportEvent
from fedmq.private_broker import AGGREGATOR, PrivateBroker
from tests.broker.client import connected

WAIT_SECONDS = 30.0


class Follower:
    """One life of a telemetry process."""

    def __init__(self, broker: PrivateBroker, session: str) -> None:
        self.inbox: queue.Queue[TransportEvent] = queue.Queue()
        self.transport = MqttTransport(
            BrokerAddress(host=broker.host, port=broker.port, username=AGGREGATOR, password=broker.passwords[AGGREGATOR]),
            client_id=session,
            on_event=self.inbox.put,
            keeps_session=True,
            manual_ack=True,
        )
        self.transport.start()
        first = self.inbox.get(timeout=WAIT_SECONDS)
        assert isinstance(first, Connected)
        self.session_present = first.session_present

    def receive(self) -> Delivered:
        """Return the next message."""
        event = self.inbox.get(timeout=WAIT_SECONDS)
        assert isinstance(event, Delivered)
        return event

    def subscribe(self, topic: str) -> None:
        """Return once the broker delivers what is published on the topic."""
        self.transport.subscribe([topic])
        self.transport.publish(topic, b"probe")
        self.transport.acknowledge(self.receive())

    def stop(self) -> None:
        """Leave in order, with the acknowledgements given so far."""
        self.transport.stop(5.0)


@pytest.fixture
def topic(run_name: str) -> str:
    return f"fedmq/v2/{run_name}/metrics/node-0"


def test_what_was_not_acknowledged_comes_again_and_the_rest_does_not(mosquitto: PrivateBroker, run_name: str, topic: str) -> None:
    first = Follower(mosquitto, f"{run_name}-telemetry")
    assert not first.session_present
    first.subscribe(topic)
    with connected(mosquitto, "node-0") as node:
        node.publish(topic, b"a", retain=False)
        node.publish(topic, b"b", retain=False)
        received = [first.receive(), first.receive()]
        assert [message.payload for message in received] == [b"a", b"b"]
        assert first.inbox.empty()
        first.transport.acknowledge(received[0])
        first.stop()
        # Nobody is there now: the broker queues for the session.
        node.publish(topic, b"c", retain=False)
    second = Follower(mosquitto, f"{run_name}-telemetry")
    assert second.session_present
    again = [second.receive(), second.receive()]
    assert [message.payload for message in again] == [b"b", b"c"]
    for message in again:
        second.transport.acknowledge(message)
    second.stop()
    third = Follower(mosquitto, f"{run_name}-telemetry")
    third.transport.forget_session()
    third.stop()
    assert third.inbox.empty()
    fourth = Follower(mosquitto, f"{run_name}-telemetry")
    assert not fourth.session_present
    fourth.transport.forget_session()
    fourth.stop()


def test_a_receipt_of_an_earlier_connection_acknowledges_nothing(own_mosquitto: PrivateBroker, run_name: str, topic: str) -> None:
    follower = Follower(own_mosquitto, f"{run_name}-telemetry")
    follower.subscribe(topic)
    with connected(own_mosquitto, "node-0") as node:
        node.publish(topic, b"a", retain=False)
    stale = follower.receive()
    own_mosquitto.restart()
    while not isinstance(follower.inbox.get(timeout=WAIT_SECONDS), Connected):
        continue
    follower.transport.acknowledge(stale)
    assert follower.receive().payload == b"a"
    follower.stop()
    again = Follower(own_mosquitto, f"{run_name}-telemetry")
    assert again.receive().payload == b"a"
    again.stop()


def wait_for(condition: Callable[[], bool]) -> None:
    """Return once a condition holds."""
    give_up_at = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


def telemetry_of(
    broker: PrivateBroker, run_name: str, folder: Path, events: list[TransportEvent], *, is_superseded: Callable[[], bool]
) -> Telemetry:
    """Return an aggregator's telemetry, with what its transport told it."""
    record = RunRecord(out_dir=folder, settings=parse_settings({"run": run_name, "num_rounds": 1}), num_nodes=1, is_resumed=True)
    record.open("0" * 64)

    def connect(on_event: OnEvent) -> MqttTransport:
        def handle(event: TransportEvent) -> None:
            events.append(event)
            on_event(event)

        address = BrokerAddress(host=broker.host, port=broker.port, username=AGGREGATOR, password=broker.passwords[AGGREGATOR])
        return MqttTransport(address, client_id=f"{run_name}-telemetry", on_event=handle, keeps_session=True, manual_ack=True)

    return Telemetry(record=record, connect=connect, forwarder=None, clock=SYSTEM_CLOCK, is_superseded=is_superseded)


def test_of_two_aggregators_the_one_that_leads_keeps_the_session(
    mosquitto: PrivateBroker, run_name: str, topic: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Mosquitto 2.0.11 cuts off the earlier of two clients with one name without a word: it would come back, and so on."""
    successors: list[TransportEvent] = []
    zombies: list[TransportEvent] = []
    zombie = telemetry_of(mosquitto, run_name, tmp_path / "out", zombies, is_superseded=lambda: bool(successors))
    zombie.start()
    wait_for(lambda: bool(zombies))
    successor = telemetry_of(mosquitto, run_name, tmp_path / "out", successors, is_superseded=lambda: False)
    successor.start()
    wait_for(lambda: "telemetry=superseded" in caplog.text)
    num_connections = len(successors)
    with connected(mosquitto, "node-0") as node:
        node.publish(topic, b"not a report", retain=False)
    wait_for(lambda: any(isinstance(event, Delivered) for event in successors))
    assert not any(isinstance(event, Connected) for event in successors[num_connections:])
    zombie.stop(5.0, has_ended=False)
    successor.stop(1.0, has_ended=True)
