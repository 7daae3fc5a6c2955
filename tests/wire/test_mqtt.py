"""What only a real Mosquitto and real sockets show."""

from __future__ import annotations

import os
import queue
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from federation.errors import TransportError
from federation.mqtt import BrokerAddress, MqttTransport, TlsFiles
from federation.transport import Connected, Delivered, Disconnected, Refused, TransportEvent
from fedmq.private_broker import PrivateBroker
from tests.wire.places import BrokerPlace, Client, address_of, wait_until
from tests.wire.raw_packets import USER_PROPERTY, RawClient, publish


@pytest.fixture
def place(own_mosquitto: PrivateBroker, run_name: str) -> Iterator[BrokerPlace]:
    place = BrokerPlace(own_mosquitto, run_name)
    yield place
    place.close()


def signal_broker(place: BrokerPlace, number: signal.Signals) -> None:
    assert place.broker.process_id is not None
    os.kill(place.broker.process_id, number)


def counting(made: list[int], index: int, payload: bytes) -> Callable[[], bytes]:
    def make() -> bytes:
        made.append(index)
        return payload

    return make


def stays(made: list[int], expected: int) -> bool:
    """Tell whether that many were made once nothing moves any more."""
    wait_until(lambda: len(made) >= expected)
    threading.Event().wait(0.2)
    return len(made) == expected


def test_a_wrong_password_is_final_and_says_what_to_check(mosquitto: PrivateBroker, run_name: str) -> None:
    events: list[TransportEvent] = []
    address = replace(address_of(mosquitto, "node-0"), password="wrong")
    transport = MqttTransport(address, client_id=run_name, on_event=events.append)
    transport.start()
    wait_until(lambda: bool(events))
    assert transport._thread is not None
    transport._thread.join(30)
    assert not transport._thread.is_alive()
    (event,) = events
    assert isinstance(event, Refused)
    assert not event.identity_taken
    assert "FEDMQ_BROKER_PASSWORD_FILE" in event.reason or "password" in event.reason
    transport.stop(1.0)
    assert "wrong" not in repr(address)


def test_a_broker_that_is_not_there_yet_is_waited_for(place: BrokerPlace) -> None:
    place.stop_broker()
    node = place.client("node-0")
    node.transport.start()
    node.publish("metrics/node-0", b"early")
    wait_until(lambda: len(node.of(Disconnected)) >= 2)
    assert f"127.0.0.1:{place.broker.port}" in node.of(Disconnected)[0].reason
    place.start_broker()
    wait_until(lambda: bool(node.of(Connected)))
    node.flush()


def test_the_socket_sends_at_once(mosquitto: PrivateBroker, run_name: str) -> None:
    place = BrokerPlace(mosquitto, run_name)
    node = place.client("node-0").connect()
    assert isinstance(node.transport, MqttTransport)
    link = node.transport._client.socket()
    assert isinstance(link, socket.socket)
    assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    place.close()


def test_nothing_unacknowledged_is_lost_when_the_broker_is_killed(place: BrokerPlace) -> None:
    """SIGKILL in the middle of publishing; what was acknowledged since its last save is the broker's to lose."""
    node = place.client("node-0", window=8).connect()
    names = [f"rounds/1/updates/node-0/chunks/{index}" for index in range(400)]
    for name in names:
        node.publish(name, lambda name=name: name.encode() * 1000, retain=True)  # type: ignore[misc]
    wait_until(lambda: node.transport.num_pending < 350)
    place.broker.kill()
    # Acknowledgements may still lie in the socket when the broker is gone: they count until the link is given up.
    wait_until(lambda: bool(node.of(Disconnected)))
    num_pending = node.transport.num_pending
    assert num_pending > 0
    place.start_broker()
    node.flush()
    leader = place.client("aggregator").connect()
    leader.follow("rounds/1/updates/+/chunks/+")
    wait_until(lambda: set(names[-num_pending:]) <= set(leader.topics))
    for event in leader.of(Delivered):
        assert event.payload == event.topic.removeprefix(f"fedmq/v2/{place.run}/").encode() * 1000


def test_subscriptions_newer_than_the_brokers_last_save_are_made_again(place: BrokerPlace) -> None:
    """A killed broker brings back an old session; without a second look the node would wait for ever."""
    leader, node = place.client("aggregator").connect(), place.client("node-0").connect()
    place.sever(node)  # Mosquitto saves only sessions that were continued
    wait_until(lambda: len(node.of(Connected)) == 2)
    node.follow("rounds/1/plan")
    database = place.broker.folder / "broker.db"
    # The broker saves by itself every 10 s: an older file than the one asked for now would do for nothing.
    before_ns = database.stat().st_mtime_ns if database.exists() else 0
    signal_broker(place, signal.SIGUSR1)
    wait_until(lambda: database.exists() and database.stat().st_mtime_ns > before_ns)
    node.follow("rounds/2/plan")
    place.broker.kill()
    place.start_broker()
    wait_until(lambda: len(node.of(Connected)) == 3 and len(leader.of(Connected)) == 2)
    assert node.of(Connected)[-1].session_present
    node.follow("state")
    for name in ("rounds/1/plan", "rounds/2/plan"):
        leader.publish(name, b"x")
    wait_until(lambda: set(node.topics) == {"rounds/1/plan", "rounds/2/plan"})


def test_a_kept_session_does_not_deliver_retained_messages_again(mosquitto: PrivateBroker, run_name: str) -> None:
    """A global model is not downloaded twice because the link blinked."""
    place = BrokerPlace(mosquitto, run_name)
    leader, node = place.client("aggregator").connect(), place.client("node-0").connect()
    leader.publish("state", b"old", retain=True)
    leader.flush()
    node.follow("state")
    wait_until(lambda: len(node.topics) == 1)
    place.sever(node)
    wait_until(lambda: len(node.of(Connected)) == 2)
    node.follow("rounds/1/plan")
    leader.publish("state", b"new", retain=True)
    wait_until(lambda: len(node.topics) >= 2)
    assert [event.payload for event in node.of(Delivered)] == [b"old", b"new"]
    place.close()


def test_a_publish_that_the_access_list_refuses_does_not_stall_the_window(
    mosquitto: PrivateBroker, run_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = BrokerPlace(mosquitto, run_name)
    leader, node = place.client("aggregator").connect(), place.client("node-0", window=2).connect()
    leader.follow("metrics/+")
    for _ in range(50):
        node.publish("metrics/node-1", b"not mine")
    node.publish("metrics/node-0", b"mine")
    node.flush()
    wait_until(lambda: bool(leader.topics))
    assert [event.payload for event in leader.of(Delivered)] == [b"mine"]
    assert caplog.text.count("event=publish_refused") == 50
    place.close()


def test_at_most_a_window_of_payloads_is_on_its_way(place: BrokerPlace) -> None:
    """While the broker stands still no more are made; then all arrive in order."""
    leader, node = place.client("aggregator").connect(), place.client("node-0", window=5).connect()
    leader.follow("metrics/+")
    signal_broker(place, signal.SIGSTOP)
    made: list[int] = []
    for index in range(40):
        node.publish("metrics/node-0", counting(made, index, bytes([index])))
    try:
        assert stays(made, 5)
    finally:
        signal_broker(place, signal.SIGCONT)
    wait_until(lambda: len(leader.topics) == 40)
    assert [event.payload for event in leader.of(Delivered)] == [bytes([index]) for index in range(40)]


def test_large_payloads_are_bounded_in_bytes(place: BrokerPlace) -> None:
    """Three of 3 MiB pass the 8 MiB limit; the fourth waits."""
    node = place.client("node-0", window=32).connect()
    signal_broker(place, signal.SIGSTOP)
    made: list[int] = []
    for index in range(10):
        node.publish("metrics/node-0", counting(made, index, bytes(3 << 20)))
    try:
        assert stays(made, 3)
    finally:
        signal_broker(place, signal.SIGCONT)
    node.flush()
    assert made == list(range(10))


def test_stop_ends_in_time_and_leaves_the_word_to_the_will(place: BrokerPlace) -> None:
    """A broker that does not answer holds nobody up."""
    leader, node = place.client("aggregator").connect(), place.client("node-0", will=b"vanished").connect()
    leader.follow("nodes/+/status")
    signal_broker(place, signal.SIGSTOP)
    try:
        for index in range(100):
            node.publish("metrics/node-0", bytes([index]) * 100_000)
        node.transport.stop(0.3, final=(node.topic("nodes/node-0/status"), b"left"))
        assert isinstance(node.transport, MqttTransport)
        assert node.transport._thread is not None
        assert not node.transport._thread.is_alive()
        assert node.transport.num_pending > 0
    finally:
        signal_broker(place, signal.SIGCONT)
    wait_until(lambda: bool(leader.topics))
    assert [event.payload for event in leader.of(Delivered)] == [b"vanished"]


def test_a_full_inbox_holds_the_broker_back_and_nothing_else(mosquitto: PrivateBroker, run_name: str) -> None:
    """on_event blocks; publishing from another thread does not, and everything arrives in the end."""
    place = BrokerPlace(mosquitto, run_name)
    leader = place.client("aggregator").connect()
    inbox: queue.Queue[TransportEvent] = queue.Queue(maxsize=1)
    transport = MqttTransport(address_of(mosquitto, "node-0"), client_id=f"{run_name}-slow", on_event=inbox.put)
    node = Client(name="node-0", place=place, transport=transport, inbox=leader.inbox)
    transport.start()
    assert isinstance(inbox.get(timeout=30), Connected)
    leader.follow("metrics/+")
    node.follow("state")
    for index in range(100):
        leader.publish("state", bytes([index]))
    leader.flush()

    def publish_all() -> None:
        for index in range(100):
            node.publish("metrics/node-0", bytes([index]))

    publisher = threading.Thread(target=publish_all)
    publisher.start()
    publisher.join(30)
    assert not publisher.is_alive()
    received = [inbox.get(timeout=30) for _ in range(100)]
    assert [event.payload for event in received if isinstance(event, Delivered)] == [bytes([index]) for index in range(100)]
    wait_until(lambda: len(leader.topics) == 100)
    transport.stop(10.0)
    place.close()


def test_an_event_handler_that_raises_does_not_end_the_transport(
    mosquitto: PrivateBroker, run_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = BrokerPlace(mosquitto, run_name)
    leader, node = place.client("aggregator").connect(), place.client("node-0").connect()

    def fail() -> None:
        raise ZeroDivisionError

    node.reactions["state"] = fail
    node.follow("state", "rounds/1/plan")
    leader.publish("state", b"x")
    leader.publish("rounds/1/plan", b"x")
    wait_until(lambda: node.topics == ["state", "rounds/1/plan"])
    assert "event=on_event_failed" in caplog.text
    place.close()


def test_what_is_no_broker_is_left_alone(run_name: str) -> None:
    """Bytes that are no MQTT end the link with an event, not the thread."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        events: list[TransportEvent] = []
        address = BrokerAddress(host="127.0.0.1", port=server.getsockname()[1])
        transport = MqttTransport(address, client_id=run_name, on_event=events.append)
        transport.start()
        for reply in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\x02\xff", bytes(100), b"\xff" * 50):
            num_events = len(events)
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(reply)
            wait_until(lambda num_events=num_events: len(events) > num_events)  # type: ignore[misc]
            # The next attempt must not wait for a long back-off.
            transport._back_off.reset()
        transport.stop(0.0)
    assert all(isinstance(event, Disconnected) for event in events)


def test_unusable_tls_files_are_refused_by_name(tmp_path: Path) -> None:
    wrong = tmp_path / "ca.crt"
    wrong.write_text("no certificate")
    for tls in (TlsFiles(ca=wrong), TlsFiles(ca=tmp_path / "absent")):
        with pytest.raises(TransportError, match="FEDMQ_TLS_CA"):
            MqttTransport(BrokerAddress(host="localhost", port=8883, tls=tls), client_id="node-0", on_event=print)


def test_a_message_of_properties_alone_holds_nobody_up(place: BrokerPlace) -> None:
    """Paho's own reading of them takes time by the square of their number: these would take an hour."""
    properties = USER_PROPERTY * 500_000
    observer = place.client("aggregator").connect().follow("metrics/+")
    address = address_of(place.broker, "node-0")
    raw = RawClient(address.host, address.port)
    raw.log_in("node-0", user=address.username, password=address.password)
    raw.socket.sendall(publish(observer.topic("metrics/node-0"), b"bare", properties=properties))
    wait_until(lambda: [event.payload for event in observer.of(Delivered)] == [b"bare"])
    assert [event.num_property_bytes for event in observer.of(Delivered)] == [len(properties)]
    raw.close()
