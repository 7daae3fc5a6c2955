"""With manual acknowledgement the broker keeps a message until it is said to be safe, across processes."""

from __future__ import annotations

import queue

import pytest

from federation.broker_address import BrokerAddress
from federation.mqtt import MqttTransport
from federation.transport import Connected, Delivered, TransportEvent
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
    return f"fedmq/v1/{run_name}/metrics/node-0"


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
