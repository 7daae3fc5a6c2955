"""The monitor turns what the broker tells into points; hostile and repeated messages change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aggregator.monitor import MAX_NODES, Monitor
from aggregator.record import RunRecord
from federation.errors import RemoteProtocolError
from federation.messages import MetricPoint, MetricsReport, NodeStatus, RunState
from federation.metrics import Point
from federation.settings import parse_settings
from federation.transport import Delivered

START = 1_700_000_000 * 10**9
SECOND = 10**9
FIGURES: dict[str, dict[str, Any]] = {"telemetry": {"recorded_points": 1}, "run": {"disk_used": 0.5}}


def at(seconds: float = 0.0, *, clock_seconds: float | None = None) -> tuple[float, int]:
    """Return the moment so long after the start, by both clocks; the second may have been set."""
    return 50.0 + seconds, START + int((seconds if clock_seconds is None else clock_seconds) * SECOND)


@pytest.fixture
def monitor(tmp_path: Path) -> Monitor:
    settings = parse_settings({"run": "r", "num_rounds": 5, "rounds": {"deadline_seconds": 100.0}})
    record = RunRecord(out_dir=tmp_path, settings=settings, num_nodes=3)
    machine = Monitor(record)
    record.open("a" * 64)
    machine.started(*at(), record.begin_life(START))
    return machine


def delivered(topic: str, payload: bytes, *, retained: bool = False) -> Delivered:
    """Return a message."""
    return Delivered(topic=topic, payload=payload, retained=retained)


def status(node: str, *, online: bool, instance: str = "i1", retained: bool = False) -> Delivered:
    """Return a node's status."""
    message = NodeStatus(node=node, online=online, instance=instance, num_examples=10)
    return delivered(f"fedmq/v2/r/nodes/{node}/status", message.to_payload(), retained=retained)


def state(round_number: int, *, phase: str = "training", retained: bool = False) -> Delivered:
    """Return the run's state."""
    values = {"run": "r", "phase": phase, "round_number": round_number, "num_rounds": 5, "epoch": 1, "method": "fedavg", "model": {}}
    return delivered("fedmq/v2/r/state", RunState.model_validate(values).to_payload(), retained=retained)


def kinds(points: list[Point]) -> list[str]:
    """Return the kinds of the events among points."""
    return [point.tags["kind"] for point in points if point.measurement == "event"]


def report(node: str, sender: str) -> Delivered:
    """Return metrics that say they are `node`'s, on `sender`'s topic."""
    point = MetricPoint(measurement="train", time_ns=START, tags={"node": "node-9"}, fields={"loss": 1.0})
    return delivered(f"fedmq/v2/r/metrics/{sender}", MetricsReport(node=node, round_number=3, points=[point]).to_payload())


def test_a_nodes_coming_and_going_are_events_and_states(monitor: Monitor) -> None:
    first = monitor.take(status("node-0", online=True), *at())
    assert kinds(first) == ["node_joined"]
    assert next(p for p in first if p.measurement == "node").fields["online"] == 1
    assert kinds(monitor.take(status("node-0", online=True), *at())) == []
    assert kinds(monitor.take(status("node-0", online=False), *at())) == ["node_lost"]
    assert monitor.num_online == 0


def test_the_will_of_a_replaced_process_is_ignored(monitor: Monitor) -> None:
    monitor.take(status("node-0", online=True, instance="i1"), *at())
    monitor.take(status("node-0", online=True, instance="i2"), *at())
    assert monitor.take(status("node-0", online=False, instance="i1"), *at()) == []
    assert monitor.num_online == 1


def test_what_was_retained_is_no_news(monitor: Monitor) -> None:
    assert kinds(monitor.take(status("node-0", online=True, retained=True), *at())) == []
    assert kinds(monitor.take(state(3, retained=True), *at())) == []
    assert monitor.num_online == 1


def test_each_round_is_announced_once(monitor: Monitor) -> None:
    assert kinds(monitor.take(state(1), *at())) == ["round_opened"]
    assert kinds(monitor.take(state(1), *at())) == []
    assert kinds(monitor.take(state(2), *at())) == ["round_opened"]
    assert not monitor.has_ended
    assert kinds(monitor.take(state(2, phase="finished"), *at())) == ["run_ended"]
    assert monitor.has_ended


def test_a_round_that_hangs_shows_in_deadlines(monitor: Monitor) -> None:
    monitor.take(state(1), *at())
    points = monitor.samples(*at(250), lambda: FIGURES)
    [run] = [point for point in points if point.measurement == "run"]
    assert run.fields["seconds_since_round"] == 250
    assert run.fields["deadlines_since_round"] == 2.5


def test_a_run_that_has_ended_is_silent(monitor: Monitor) -> None:
    monitor.take(state(5, phase="finished"), *at())
    assert "run" not in {point.measurement for point in monitor.samples(*at(), lambda: FIGURES)}


def test_samples_come_at_their_pace(monitor: Monitor) -> None:
    monitor.take(status("node-0", online=True), *at())
    counted = [point for second in range(61) for point in monitor.tick(*at(second), lambda: FIGURES)]
    assert [point.measurement for point in counted].count("node") == 3
    assert [point.measurement for point in counted].count("run") == 3


def test_the_brokers_own_figures_become_one_point(monitor: Monitor) -> None:
    topics = {
        "clients/connected": b"4",
        "publish/messages/dropped": b"2",
        "store/messages/count": b"100",
        "retained messages/count": b"60",
        "uptime": b"3600 seconds",
        "version": b"mosquitto version 2.0.11",
        "bytes/sent": b"not a number",
    }
    for name, payload in topics.items():
        assert monitor.take(delivered(f"$SYS/broker/{name}", payload), *at()) == []
    points = monitor.tick(*at(3), lambda: FIGURES)
    [broker] = [point for point in points if point.measurement == "broker"]
    assert broker.fields == {
        "clients_connected": 4,
        "messages_dropped": 2,
        "messages_stored": 100,
        "retained_messages": 60,
        "queued_messages": 40,
        "uptime_seconds": 3600,
    }
    later = monitor.tick(*at(14), lambda: FIGURES)
    assert "broker" not in {point.measurement for point in later}


def test_metrics_are_tagged_by_their_topic(monitor: Monitor) -> None:
    [point] = monitor.take(report("node-1", "node-1"), *at())
    assert point.tags == {"run": "r", "strategy": "fedavg", "node": "node-1"}
    assert point.fields == {"loss": 1.0, "round_number": 3}


@pytest.mark.parametrize(
    "message",
    [
        report("node-1", "node-2"),
        delivered("fedmq/v2/r/metrics/node-0", b"{"),
        delivered("fedmq/v2/r/metrics/node-0", b'{"version":1}'),
        delivered("fedmq/v2/r/nodes/node-0/status", b"\xff"),
        delivered("fedmq/v2/r/rounds/1/plan", b"{}"),
        delivered("something/else", b"{}"),
    ],
)
def test_what_is_not_the_protocol_is_a_named_error(monitor: Monitor, message: Delivered) -> None:
    with pytest.raises(RemoteProtocolError):
        monitor.take(message, *at())


def test_the_number_of_nodes_is_bounded(monitor: Monitor) -> None:
    for index in range(MAX_NODES):
        monitor.take(report(f"n{index}", f"n{index}"), *at())
    with pytest.raises(RemoteProtocolError, match=str(MAX_NODES)):
        monitor.take(report("one-more", "one-more"), *at())
    assert monitor.take(report("n0", "n0"), *at())


@pytest.mark.parametrize("year", [-1, 1])
def test_clock_that_is_set_changes_no_interval(monitor: Monitor, year: int) -> None:
    """The second clock is set by a year after ten seconds: samples come as before, and the round is as old as it is."""
    monitor.take(state(1), *at())
    jump = year * 365 * 86_400.0
    points = [p for second in range(10) for p in monitor.tick(*at(second), lambda: FIGURES)]
    points += [p for second in range(10, 100) for p in monitor.tick(*at(second, clock_seconds=second + jump), lambda: FIGURES)]
    runs = [point for point in points if point.measurement == "run"]
    assert [point.fields["seconds_since_round"] for point in runs] == [0.0, 30.0, 60.0, 90.0]
