"""The faults that only the in-memory twin makes on demand."""

from __future__ import annotations

import pytest

from federation.faults import Faults, seeded_faults
from federation.memory_transport import InMemoryBroker, InMemoryTransport
from federation.transport import Connected, Delivered, Disconnected, TransportEvent, Will


def connected(broker: InMemoryBroker, name: str, *filters: str, will: Will | None = None) -> tuple[InMemoryTransport, list[TransportEvent]]:
    events: list[TransportEvent] = []
    transport = InMemoryTransport(broker, client_id=name, on_event=events.append, will=will)
    transport.start()
    transport.subscribe(filters)
    broker.deliver()
    return transport, events


def payloads(events: list[TransportEvent]) -> list[bytes]:
    return [event.payload for event in events if isinstance(event, Delivered)]


def publish_numbers(transport: InMemoryTransport, num_messages: int) -> list[bytes]:
    numbers = [index.to_bytes(2, "big") for index in range(num_messages)]
    for index, number in enumerate(numbers):
        transport.publish(f"t/{index}", number, retain=True)
    return numbers


def test_nothing_moves_until_it_is_delivered() -> None:
    broker = InMemoryBroker()
    transport, events = connected(broker, "a", "t/+")
    publish_numbers(transport, 3)
    assert payloads(events) == []
    assert transport.num_pending == 3
    assert broker.deliver() == 3
    assert len(payloads(events)) == 3
    assert broker.deliver() == 0


def test_delivery_can_be_stopped_between_any_two_events() -> None:
    broker = InMemoryBroker()
    transport, events = connected(broker, "a", "t/+")
    numbers = publish_numbers(transport, 5)
    assert broker.deliver(max_events=2) == 2
    assert payloads(events) == numbers[:2]
    broker.deliver()
    assert payloads(events) == numbers


def test_a_dropped_copy_is_counted_and_still_retained() -> None:
    broker = InMemoryBroker(faults=Faults(drop=lambda client_id, topic: client_id == "b" and topic == "t/1"))
    publisher, _ = connected(broker, "a")
    _, spared = connected(broker, "c", "t/+")
    _, struck = connected(broker, "b", "t/+")
    numbers = publish_numbers(publisher, 3)
    broker.deliver()
    assert payloads(struck) == [numbers[0], numbers[2]]
    assert payloads(spared) == numbers
    assert broker.num_dropped == 1
    assert broker.retained["t/1"] == numbers[1]
    assert publisher.num_pending == 0


def test_duplicates_and_reordering_change_no_content() -> None:
    broker = InMemoryBroker(faults=seeded_faults(3, duplicate=0.3, reorder=0.5))
    publisher, _ = connected(broker, "a")
    numbers = publish_numbers(publisher, 100)
    broker.deliver()
    _, events = connected(broker, "b", "t/+")
    assert set(payloads(events)) == set(numbers)
    assert len(payloads(events)) > 100
    assert payloads(events) != sorted(payloads(events))


def test_the_same_seed_makes_the_same_faults() -> None:
    def run(seed: int) -> list[bytes]:
        broker = InMemoryBroker(faults=seeded_faults(seed, drop=0.2, duplicate=0.2, reorder=0.2))
        publisher, _ = connected(broker, "a")
        publish_numbers(publisher, 50)
        broker.deliver()
        return payloads(connected(broker, "b", "t/+")[1])

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_faults_can_spare_topics() -> None:
    broker = InMemoryBroker(faults=seeded_faults(0, drop=1.0, affects=lambda topic: topic != "t/0"))
    publisher, _ = connected(broker, "a")
    _, events = connected(broker, "b", "t/+")
    numbers = publish_numbers(publisher, 5)
    broker.deliver()
    assert payloads(events) == numbers[:1]


def test_a_full_queue_drops_the_newest() -> None:
    """As Mosquitto's max_queued_messages; retained messages count, too."""
    broker = InMemoryBroker(max_queued_messages=10)
    publisher, _ = connected(broker, "a")
    _, away = connected(broker, "b", "t/+")
    broker.sever("b")
    numbers = publish_numbers(publisher, 15)
    broker.deliver()
    broker.mend("b")
    broker.deliver()
    assert payloads(away) == numbers[:10]
    assert broker.num_dropped == 5
    _, late = connected(broker, "c", "t/+")
    assert len(payloads(late)) == 10


def test_a_severed_client_stays_away_until_it_is_mended() -> None:
    broker = InMemoryBroker()
    publisher, _ = connected(broker, "a")
    _, watcher = connected(broker, "c", "status")
    node, events = connected(broker, "b", "t/+", will=Will(topic="status", payload=b"gone"))
    broker.sever("b")
    numbers = publish_numbers(publisher, 3)
    node.publish("status", b"back", retain=True)
    broker.deliver()
    assert payloads(events) == []
    assert payloads(watcher) == [b"gone"]
    assert isinstance(events[-1], Disconnected)
    broker.mend("b")
    broker.deliver()
    assert payloads(events) == numbers
    assert payloads(watcher) == [b"gone", b"back"]


def test_lost_acknowledgements_make_the_publisher_send_again() -> None:
    broker = InMemoryBroker()
    publisher, _ = connected(broker, "a")
    _, events = connected(broker, "b", "t/+")
    numbers = publish_numbers(publisher, 5)
    broker.deliver()
    broker.sever("a", num_unacknowledged=2)
    publisher.publish("t/9", b"new")
    broker.mend("a")
    broker.deliver()
    assert payloads(events) == [*numbers, *numbers[3:], b"new"]


@pytest.mark.parametrize("persistence", [True, False])
def test_a_restarted_broker_keeps_what_its_disk_kept(*, persistence: bool) -> None:
    broker = InMemoryBroker()
    publisher, _ = connected(broker, "a", will=Will(topic="status", payload=b"gone"))
    _, events = connected(broker, "b", "t/+")
    publish_numbers(publisher, 2)
    broker.deliver()
    broker.stop()
    publisher.publish("t/7", b"while it was down")
    broker.deliver()
    assert len(payloads(events)) == 2
    broker.restart(persistence=persistence)
    broker.deliver()
    last = [event for event in events if isinstance(event, Connected)][-1]
    assert last.session_present is persistence
    assert payloads(events)[2:] == ([b"while it was down"] if persistence else [])
    assert set(broker.retained) == ({"t/0", "t/1"} if persistence else set())


def test_an_expired_session_is_gone() -> None:
    broker = InMemoryBroker()
    _, events = connected(broker, "b", "t/+")
    broker.sever("b")
    broker.deliver()
    broker.expire_session("b")
    broker.mend("b")
    broker.deliver()
    assert isinstance(events[-1], Connected)
    assert not events[-1].session_present


def test_two_brokers_given_the_same_deliver_the_same() -> None:
    """Order does not depend on hashing or threads: what a repeatable simulation stands on."""

    def run() -> list[tuple[str, TransportEvent]]:
        broker, log = InMemoryBroker(), []
        transports = []
        for name in ("n2", "n0", "n1"):
            transport = InMemoryTransport(broker, client_id=name, on_event=lambda event, name=name: log.append((name, event)))  # type: ignore[misc]
            transport.start()
            transport.subscribe(["t/#"])
            transports.append(transport)
        broker.deliver()
        for index in range(10):
            for transport in transports:
                transport.publish(f"t/{index}", bytes([index]))
        broker.deliver()
        return log

    assert run() == run()
    assert len(run()) == 3 + 90


def test_an_error_in_a_handler_reaches_whoever_delivers() -> None:
    """A test must see it; the real transport logs it and goes on."""
    broker = InMemoryBroker()

    def fail(event: TransportEvent) -> None:
        if isinstance(event, Delivered):
            raise ZeroDivisionError

    transport = InMemoryTransport(broker, client_id="a", on_event=fail)
    transport.start()
    transport.subscribe(["t"])
    transport.publish("t", b"x")
    with pytest.raises(ZeroDivisionError):
        broker.deliver()
    assert broker.deliver() == 0
