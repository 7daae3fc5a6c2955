"""A node that was told no run finds one that is led, and leaves one that nobody leads: on a hand-moved clock."""

from __future__ import annotations

import pytest

from edge_node.discovery import GONE_SECONDS, SETTLE_SECONDS, SILENT_SECONDS, RunBoard, RunFinder
from edge_node.events import TimePassed
from federation import topics
from federation.memory_transport import InMemoryBroker, InMemoryTransport
from federation.messages import AggregatorStatus, RunState
from federation.transport import Connected, Delivered


def state(run: str, *, phase: str = "training") -> Delivered:
    """Return a run's retained state."""
    values = {"run": run, "phase": phase, "round_number": 1, "num_rounds": 5, "epoch": 1, "method": "fedavg", "model": {}}
    return Delivered(topic=str(topics.StateTopic(run)), payload=RunState.model_validate(values).to_payload(), retained=True)


def presence(run: str, *, online: bool = True, retained: bool = False, instance: str = "i1") -> Delivered:
    """Return a word of a run's aggregator."""
    payload = AggregatorStatus(run=run, online=online, instance=instance).to_payload()
    return Delivered(topic=str(topics.AggregatorTopic(run)), payload=payload, retained=retained)


def board(*messages: Delivered, at: float = 0.0) -> RunBoard:
    """Return a board that has taken messages."""
    made = RunBoard()
    for message in messages:
        made.note(message, at)
    return made


@pytest.fixture
def now() -> list[float]:
    return [100.0]


def finder_of(now: list[float], *, avoid: str | None = None) -> RunFinder:
    """Return a connected finder."""
    transport = InMemoryTransport(InMemoryBroker(), client_id="finder", on_event=lambda _event: None)
    finder = RunFinder(transport, avoid=avoid, monotonic=lambda: now[0])
    finder.take(Connected(session_present=False, max_packet_bytes=None))
    return finder


def test_run_whose_aggregator_has_left_is_abandoned_after_its_grace() -> None:
    runs = board(state("old"), presence("old"))
    runs.note(presence("old", online=False), 10.0)
    assert not runs.is_abandoned("old", 10.0 + GONE_SECONDS - 1)
    assert runs.is_abandoned("old", 10.0 + GONE_SECONDS)
    runs.note(presence("old", instance="i2"), 20.0)
    assert not runs.is_abandoned("old", 10.0 + GONE_SECONDS)


def test_run_that_is_only_silent_is_abandoned_later() -> None:
    """A broker that dies with the aggregator never publishes its will."""
    runs = board(state("old"), presence("old"))
    runs.hear("old", 50.0)
    assert not runs.is_abandoned("old", 50.0 + SILENT_SECONDS - 1)
    assert runs.is_abandoned("old", 50.0 + SILENT_SECONDS)


def test_run_of_an_aggregator_without_presence_is_never_abandoned() -> None:
    assert not board(state("old")).is_abandoned("old", 1e6)


def test_last_word_of_a_twin_takes_nothing_from_its_successor() -> None:
    runs = board(presence("old", instance="i1"), presence("old", instance="i2"), presence("old", online=False, instance="i1"))
    assert not runs.is_abandoned("old", GONE_SECONDS)


def test_nobody_is_called_silent_for_the_time_this_node_was_away() -> None:
    runs = board(state("old"), presence("old"))
    runs.forgive(500.0)
    assert not runs.is_abandoned("old", 500.0 + SILENT_SECONDS - 1)


def test_finder_takes_the_run_that_is_led_and_not_the_first_that_is_unfinished(now: list[float]) -> None:
    finder = finder_of(now)
    for message in (state("a-old"), presence("a-old", online=False, retained=True), state("b-new"), presence("b-new", retained=True)):
        finder.take(message)
    assert finder.run is None
    now[0] += SETTLE_SECONDS
    finder.take(TimePassed())
    assert finder.run == "b-new"


def test_finder_takes_a_run_that_is_heard_live_at_once(now: list[float]) -> None:
    finder = finder_of(now)
    for message in (state("a-old"), presence("a-old", retained=True), state("b-new"), presence("b-new")):
        finder.take(message)
    assert finder.run == "b-new"


def test_finder_goes_back_to_the_run_just_left_only_when_it_is_heard_live(now: list[float]) -> None:
    finder = finder_of(now, avoid="a-old")
    for message in (state("a-old"), presence("a-old", retained=True)):
        finder.take(message)
    now[0] += SETTLE_SECONDS
    finder.take(TimePassed())
    assert finder.run is None
    finder.take(presence("a-old"))
    assert finder.run == "a-old"


def test_finder_waits_where_every_run_has_ended(now: list[float]) -> None:
    finder = finder_of(now)
    finder.take(state("done", phase="finished"))
    now[0] += SETTLE_SECONDS
    finder.take(TimePassed())
    assert (finder.run, finder.stopped, finder.wake_at) == (None, None, None)
