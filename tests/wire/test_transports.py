"""What every transport does, shown on the in-memory twin and on a real Mosquitto alike."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from federation.transport import Connected, Delivered, Disconnected, Refused
from tests.wire.places import MAX_PACKET_BYTES, BrokerPlace, MemoryPlace, Place

PLACES = [
    "memory",
    pytest.param("mosquitto", marks=pytest.mark.mosquitto),
    pytest.param("ejabberd", marks=pytest.mark.ejabberd),
]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, run_name: str) -> Iterator[Place]:
    """A place whose broker stays up."""
    yield from _place(request, run_name, "")


@pytest.fixture(params=PLACES[:2])
def limited_place(request: pytest.FixtureRequest, run_name: str) -> Iterator[Place]:
    """A place whose broker says how large a packet it takes."""
    yield from _place(request, run_name, "")


@pytest.fixture(params=PLACES)
def breakable_place(request: pytest.FixtureRequest, run_name: str) -> Iterator[Place]:
    """A place whose broker may be stopped."""
    yield from _place(request, run_name, "own_")


def _place(request: Any, run_name: str, kind: str) -> Iterator[Place]:
    place = MemoryPlace() if request.param == "memory" else BrokerPlace(request.getfixturevalue(f"{kind}{request.param}"), run_name)
    yield place
    place.close()


def test_a_retained_message_awaits_its_subscribers(place: Place) -> None:
    """It is flagged as retained to those who come later, not to those who were there."""
    leader, early, late = place.client("aggregator").connect(), place.client("node-0").connect(), place.client("node-1").connect()
    early.follow("state")
    leader.publish("state", b"first", retain=True)
    leader.publish("state", b"second", retain=True)
    leader.flush()
    late.follow("state")
    place.wait(lambda: len(early.topics) == 2 and len(late.topics) == 1)
    assert [(event.payload, event.retained) for event in early.of(Delivered)] == [(b"first", False), (b"second", False)]
    assert [(event.payload, event.retained) for event in late.of(Delivered)] == [(b"second", True)]


def test_an_empty_payload_clears_a_retained_message(place: Place) -> None:
    leader, node = place.client("aggregator").connect(), place.client("node-0").connect()
    leader.publish("state", b"old", retain=True)
    leader.publish("state", b"", retain=True)
    leader.publish("rounds/1/plan", b"plan", retain=True)
    leader.flush()
    node.follow("state", "rounds/1/plan")
    place.wait(lambda: "rounds/1/plan" in node.topics)
    assert node.topics == ["rounds/1/plan"]


def test_each_subscription_delivers_what_is_retained(place: Place) -> None:
    """How a node fetches chunks again that it lacks."""
    leader, node = place.client("aggregator").connect(), place.client("node-0").connect()
    leader.publish("state", b"x", retain=True)
    leader.flush()
    node.follow("state")
    node.follow("state")
    place.wait(lambda: node.topics == ["state", "state"])


def test_filters_select_topics(place: Place) -> None:
    leader, node = place.client("aggregator").connect(), place.client("node-0").connect()
    leader.follow("rounds/1/updates/+/chunks/+", "rounds/1/updates/+/manifest")
    for name in (
        "rounds/1/updates/node-0/chunks/0",
        "rounds/2/updates/node-0/chunks/0",
        "metrics/node-0",
        "rounds/1/updates/node-0/manifest",
    ):
        node.publish(name, b"x")
    place.wait(lambda: "rounds/1/updates/node-0/manifest" in leader.topics)
    assert leader.topics == ["rounds/1/updates/node-0/chunks/0", "rounds/1/updates/node-0/manifest"]


def test_an_unsubscribed_filter_delivers_no_more(place: Place) -> None:
    leader, node = place.client("aggregator").connect(), place.client("node-0").connect()
    node.follow("state", "rounds/1/plan")
    node.transport.unsubscribe([node.topic("state")])
    node.follow("rounds/2/plan")
    for name in ("state", "rounds/1/plan", "rounds/2/plan"):
        leader.publish(name, b"x")
    place.wait(lambda: "rounds/2/plan" in node.topics)
    assert node.topics == ["rounds/1/plan", "rounds/2/plan"]


def test_what_one_client_publishes_arrives_in_order(place: Place) -> None:
    leader, node = place.client("aggregator").connect(), place.client("node-0", window=7).connect()
    leader.follow("rounds/1/updates/+/chunks/+")
    expected = [f"rounds/1/updates/node-0/chunks/{index}" for index in range(300)]
    for name in expected:
        node.publish(name, name.encode())
    place.wait(lambda: len(leader.topics) >= 300)
    assert leader.topics == expected
    place.wait(lambda: node.transport.num_pending == 0)


def test_a_large_payload_arrives_whole(place: Place) -> None:
    leader, node = place.client("aggregator").connect(), place.client("node-0").connect()
    leader.follow("rounds/1/updates/+/chunks/+")
    payload = bytes(range(256)) * 12_000
    node.publish("rounds/1/updates/node-0/chunks/0", payload, retain=True)
    place.wait(lambda: len(leader.topics) == 1)
    assert leader.of(Delivered)[0].payload == payload


def test_payloads_are_made_when_their_turn_comes(place: Place) -> None:
    """And only then: before the connection none is in memory."""
    made: list[int] = []

    def make(index: int) -> bytes:
        made.append(index)
        return bytes([index])

    leader, node = place.client("aggregator").connect(), place.client("node-0", window=3)
    leader.follow("metrics/+")
    for index in range(20):
        node.publish("metrics/node-0", lambda index=index: make(index))  # type: ignore[misc]
    assert made == []
    assert node.transport.num_pending == 20
    node.connect()
    place.wait(lambda: len(leader.topics) == 20)
    assert made == list(range(20))
    assert [event.payload for event in leader.of(Delivered)] == [bytes([index]) for index in range(20)]


def test_a_payload_that_can_not_be_made_is_skipped_and_logged(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    leader, node = place.client("aggregator").connect(), place.client("node-0").connect()
    leader.follow("metrics/+")
    node.publish("metrics/node-0", lambda: bytes([1 // 0]))
    node.publish("metrics/node-0", b"after")
    place.wait(lambda: len(leader.topics) == 1)
    assert leader.of(Delivered)[0].payload == b"after"
    assert "event=payload_failed" in caplog.text


def test_a_payload_over_the_brokers_limit_is_skipped_and_logged(limited_place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Mosquitto would cut the link for it, again after each reconnection."""
    place = limited_place
    leader, node = place.client("aggregator").connect(), place.client("node-0").connect()
    assert node.of(Connected)[0].max_packet_bytes == MAX_PACKET_BYTES
    leader.follow("metrics/+")
    node.publish("metrics/node-0", bytes(MAX_PACKET_BYTES))
    node.publish("metrics/node-0", b"after")
    place.wait(lambda: len(leader.topics) == 1)
    assert leader.of(Delivered)[0].payload == b"after"
    assert "max_packet_size" in caplog.text
    assert node.of(Disconnected) == []


def test_pending_publishes_can_be_forgotten(place: Place) -> None:
    """By whole topic levels: round 1 is not round 10."""
    leader, node = place.client("aggregator").connect(), place.client("node-0")
    leader.follow("rounds/+/updates/+/chunks/+")
    for round_number in (1, 10):
        for index in range(3):
            node.publish(f"rounds/{round_number}/updates/node-0/chunks/{index}", b"x")
    node.transport.drop_pending(node.topic("rounds/1"))
    assert node.transport.num_pending == 3
    node.connect()
    place.wait(lambda: len(leader.topics) == 3)
    assert leader.topics == [f"rounds/10/updates/node-0/chunks/{index}" for index in range(3)]


def test_a_client_that_vanishes_leaves_its_will(place: Place) -> None:
    leader, node = place.client("aggregator").connect(), place.client("node-0", will=b"offline").connect()
    node.publish("nodes/node-0/status", b"online", retain=True)
    node.flush()
    place.sever(node)
    place.wait(lambda: len(node.of(Connected)) == 2)
    leader.follow("nodes/+/status")
    place.wait(lambda: len(leader.topics) == 1)
    assert [(event.payload, event.retained) for event in leader.of(Delivered)] == [(b"offline", True)]
    assert len(node.of(Disconnected)) == 1


def test_a_client_that_stops_says_its_last_word_and_leaves_no_will(place: Place) -> None:
    leader, node = place.client("aggregator").connect(), place.client("node-0", will=b"vanished").connect()
    leader.follow("nodes/+/status", "metrics/+")
    for index in range(50):
        node.publish("metrics/node-0", bytes([index]))
    node.transport.stop(30.0, final=(node.topic("nodes/node-0/status"), b"left"))
    leader.publish("metrics/node-1", b"sentinel")
    place.wait(lambda: "metrics/node-1" in leader.topics)
    payloads = [event.payload for event in leader.of(Delivered)]
    assert payloads[:51] == [*(bytes([index]) for index in range(50)), b"left"]
    assert b"vanished" not in payloads
    assert node.transport.num_pending == 0


def test_after_stop_nothing_is_sent_or_reported(place: Place) -> None:
    leader, node = place.client("aggregator").connect(), place.client("node-0").connect()
    node.follow("state")
    leader.follow("metrics/+")
    node.transport.stop(30.0)
    num_events = len(node.events)
    node.publish("metrics/node-0", b"too late")
    leader.publish("state", b"x")
    leader.publish("metrics/node-1", b"sentinel")
    place.wait(lambda: "metrics/node-1" in leader.topics)
    assert leader.topics == ["metrics/node-1"]
    assert len(node.events) == num_events


def test_a_session_outlives_a_lost_link(place: Place) -> None:
    """Subscriptions stay, and what came meanwhile is delivered."""
    leader, node = place.client("aggregator").connect(), place.client("node-0").connect()
    node.follow("rounds/+/plan")
    place.sever(node)
    for round_number in range(1, 6):
        leader.publish(f"rounds/{round_number}/plan", b"x")
    place.wait(lambda: len(node.of(Connected)) == 2 and len(set(node.topics)) == 5)
    assert [event.session_present for event in node.of(Connected)] == [False, True]
    assert [name for index, name in enumerate(node.topics) if name not in node.topics[:index]] == [f"rounds/{r}/plan" for r in range(1, 6)]


def test_a_subscription_asked_for_while_away_is_made_on_return(place: Place) -> None:
    leader, node = place.client("aggregator").connect(), place.client("node-0")
    leader.publish("state", b"x", retain=True)
    leader.flush()
    node.transport.subscribe([node.topic("state")])
    node.connect()
    place.wait(lambda: node.topics == ["state"])


def test_a_new_process_begins_a_new_session(place: Place) -> None:
    first = place.client("node-0").connect().follow("state")
    place.sever(first)
    second = place.client("node-0").connect()
    assert [event.session_present for event in second.of(Connected)] == [False]


def test_of_two_clients_with_one_identity_the_first_is_told_and_stops(place: Place) -> None:
    """Also by a broker that does not say so (Mosquitto before 2.0.15)."""
    leader = place.client("aggregator").connect().follow("nodes/+/status")
    first, second = place.client("node-0").connect(), place.client("node-0").connect()
    second.follow("state")
    place.wait(lambda: bool(first.of(Refused)))
    assert first.of(Refused)[0].identity_taken
    assert "identity" in first.of(Refused)[0].reason
    second.publish("nodes/node-0/status", b"second")
    leader.publish("state", b"x", retain=True)
    place.wait(lambda: bool(leader.topics) and "state" in second.topics)
    assert second.of(Refused) == []
    assert second.events[-1] == second.of(Delivered)[-1]


def test_a_restarted_broker_holds_what_was_retained_and_nothing_is_lost(breakable_place: Place) -> None:
    """Publishes before, during and after the outage are all there, however far the window had come."""
    place = breakable_place
    leader, node = place.client("aggregator").connect(), place.client("node-0").connect()
    expected = [f"rounds/1/updates/node-0/chunks/{index}" for index in range(250)]
    for name in expected[:200]:
        node.publish(name, name.encode() * 500, retain=True)
    place.stop_broker()
    for name in expected[200:]:
        node.publish(name, name.encode() * 500, retain=True)
    place.start_broker()
    node.flush()
    place.wait(lambda: len(leader.of(Connected)) == 2)
    leader.follow("rounds/1/updates/+/chunks/+")
    place.wait(lambda: len(leader.topics) >= 250)
    assert sorted(leader.topics) == sorted(expected)
    assert all(event.retained and event.topic.encode().endswith(event.payload[-20:]) for event in leader.of(Delivered))


def test_without_its_session_a_client_is_told_to_subscribe_again(breakable_place: Place) -> None:
    """Mosquitto 2.0 saves no session that began with a clean start."""
    place = breakable_place
    leader, node = place.client("aggregator").connect(), place.client("node-0").connect()
    node.follow("state")
    place.stop_broker()
    place.start_broker()
    place.wait(lambda: len(node.of(Connected)) == 2 and len(leader.of(Connected)) == 2)
    assert [event.session_present for event in node.of(Connected)] == [False, False]
    leader.publish("state", b"unheard")
    leader.flush()
    node.follow("state")
    leader.publish("state", b"heard")
    place.wait(lambda: bool(node.of(Delivered)))
    assert [event.payload for event in node.of(Delivered)] == [b"heard"]


def test_many_threads_may_publish_at_once(place: Place) -> None:
    """Each thread's messages keep their order."""
    leader, node = place.client("aggregator").connect(), place.client("node-0").connect()
    leader.follow("rounds/1/updates/+/chunks/+")

    def publish_all(thread: int) -> None:
        for index in range(50):
            node.publish(f"rounds/1/updates/node-0/chunks/{thread * 100 + index}", b"x")

    threads = [threading.Thread(target=publish_all, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    place.wait(lambda: len(leader.topics) == 400)
    indices = [int(name.rsplit("/", 1)[1]) for name in leader.topics]
    for number in range(8):
        mine = [index for index in indices if index // 100 == number]
        assert mine == sorted(mine)
        assert len(mine) == 50


def test_a_client_may_answer_and_stop_from_within_an_event(place: Place) -> None:
    """The in-memory broker does not recurse, the real one's thread does not wait for itself."""
    leader, node = place.client("aggregator").connect(), place.client("node-0").connect()
    leader.follow("metrics/+", "nodes/+/status")

    def answer() -> None:
        node.publish("metrics/node-0", b"pong")
        node.transport.stop(30.0, final=(node.topic("nodes/node-0/status"), b"left"))

    node.reactions["state"] = answer
    node.follow("state")
    leader.publish("state", b"ping")
    place.wait(lambda: leader.topics == ["metrics/node-0", "nodes/node-0/status"])
