"""A run as one row: the points of `run_summary` as a run goes, and the labels of its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aggregator.class_points import class_label, row_fields
from aggregator.monitor import Monitor
from aggregator.record import RunRecord
from aggregator.run_summary import RoundsSoFar, note_of
from federation.condition import RunCondition
from federation.messages import NodeStatus
from federation.metrics import Point
from federation.settings import parse_settings
from tests.telemetry.test_monitor import FIGURES, SECOND, START, at, delivered, report, state, status
from tests.telemetry.test_record import DIGEST, result

NAMES = ("basophil", 'a "quoted" \\ name')


def opened(folder: Path, *, is_resumed: bool = False) -> tuple[RunRecord, Monitor]:
    """Return the record and the monitor of a run of five rounds that begins, or goes on."""
    settings = parse_settings({"run": "r", "num_rounds": 5, "data": {"name": "bloodmnist"}, "rounds": {"min_nodes": 2}})
    record = RunRecord(out_dir=folder, settings=settings, num_nodes=2, class_names=NAMES, is_resumed=is_resumed)
    record.open(DIGEST)
    return record, Monitor(record)


def summaries(points: list[Point]) -> list[dict[str, Any]]:
    """Return the fields of the summaries among points."""
    return [dict(point.fields) for point in points if point.measurement == "run_summary"]


def tick(monitor: Monitor, seconds: float) -> list[dict[str, Any]]:
    """Return the summaries of a moment."""
    return summaries(monitor.tick(*at(seconds), lambda: FIGURES))


def begin(record: RunRecord, monitor: Monitor, seconds: float = 0.0) -> list[dict[str, Any]]:
    """Return the summaries of a start, recorded."""
    points = monitor.started(*at(seconds), record.begin_life(at(seconds)[1]))
    record.journal.append(points)
    return summaries(points)


def test_a_run_tells_of_each_change_and_then_every_30_seconds(tmp_path: Path) -> None:
    record, monitor = opened(tmp_path)
    [first] = begin(record, monitor)
    assert (first["state"], first["life"], first["started_ms"]) == (RunCondition.WAITING, 1, START // 10**6)
    assert (first["dataset"], first["method"], first["num_classes"], first["until"]) == ("bloodmnist", "fedavg", 2, "now")
    assert (first["note"], first["rounds"], first["nodes"]) == ("2 more nodes", "0 of 5", "0 of 2")
    tick(monitor, 0)
    monitor.take(status("node-0", online=True), *at(1))
    [one_more] = tick(monitor, 1)
    assert (one_more["note"], one_more["nodes"]) == ("1 more node", "1 of 2")
    assert "life" not in one_more
    monitor.take(state(1), *at(2))
    record.note_awaited(["node-0", "node-1", "node-2", "node-3", "node-4"])
    [training] = tick(monitor, 2)
    assert (training["state"], training["note"]) == (RunCondition.TRAINING, "node-0, node-1, node-2 and 2 more to train")
    assert tick(monitor, 20) == []
    [repeated] = tick(monitor, 31)
    assert set(repeated) == {"state", "seen_ms", "note", "rounds", "nodes", "seconds"}
    assert repeated["seen_ms"] == START // 10**6 + 31_000
    record.note_evaluating()
    [evaluating] = tick(monitor, 32)
    assert evaluating["state"] == RunCondition.EVALUATING
    record.add_result(result(1, seconds=40.0), START + 33 * SECOND)
    [done] = tick(monitor, 33)
    assert (done["rounds_done"], done["rounds"], done["accuracy"]) == (1, "1 of 5", 0.5)
    assert (done["worst_class"], done["worst_accuracy"]) == ("1 a quoted  name", 0.0)
    assert done["seconds_left"] == 4 * 40.0
    monitor.take(state(1, phase="finished"), *at(40))
    [ended] = tick(monitor, 40)
    assert (ended["state"], ended["seconds"], ended["until"]) == (RunCondition.FINISHED, 40.0, str(START // 10**6 + 41_000))
    assert (ended["seconds_left"], ended["nodes"], ended["nodes_online"]) == (0.0, "–", 1)
    assert tick(monitor, 100) == [], "an ended run says nothing more"


def test_a_resumed_run_keeps_its_life_and_a_folder_used_anew_begins_the_next(tmp_path: Path) -> None:
    begin(*opened(tmp_path))
    record, monitor = opened(tmp_path, is_resumed=True)
    [resumed] = begin(record, monitor, 60)
    assert "life" not in resumed
    assert resumed["started_ms"] == START // 10**6
    assert resumed["seconds"] == 60.0
    [anew] = begin(*opened(tmp_path), 90)
    assert (anew["life"], anew["started_ms"]) == (2, START // 10**6 + 90_000)


def test_a_finished_run_that_is_resumed_keeps_its_end(tmp_path: Path) -> None:
    record, monitor = opened(tmp_path)
    begin(record, monitor)
    for number in range(1, 6):
        record.add_result(result(number), START + number * SECOND)
    monitor.take(state(5, phase="finished"), *at(6))
    record.journal.append(monitor.tick(*at(6), lambda: FIGURES))
    record, monitor = opened(tmp_path, is_resumed=True)
    assert record.so_far.num_done == 5
    assert begin(record, monitor, 3600) == []
    monitor.take(state(5, phase="finished", retained=True), *at(3600))
    assert tick(monitor, 3601) == []


def test_a_node_that_reports_nothing_for_a_minute_is_silent_at_once(tmp_path: Path) -> None:
    record, monitor = opened(tmp_path)
    begin(record, monitor)
    monitor.take(status("node-0", online=True), *at())
    monitor.take(report("node-0", "node-0"), *at())
    states: list[tuple[int, int]] = []
    for second in range(100):
        points = monitor.tick(*at(second), lambda: FIGURES)
        states += [(second, int(point.fields["state"])) for point in points if point.measurement == "node"]
    assert next(entry for entry in states if entry[1] == 1) == (61, 1)
    monitor.take(report("node-0", "node-0"), *at(100))
    [back] = [p.fields["state"] for p in monitor.tick(*at(101), lambda: FIGURES) if p.measurement == "node"]
    assert back == 3


def test_a_node_that_never_reports_is_not_called_silent(tmp_path: Path) -> None:
    record, monitor = opened(tmp_path)
    begin(record, monitor)
    monitor.take(status("node-0", online=True), *at())
    points = monitor.samples(*at(3600), lambda: FIGURES)
    assert [point.fields["state"] for point in points if point.measurement == "node"] == [3]


def test_while_the_broker_is_away_no_node_is_judged(tmp_path: Path) -> None:
    record, monitor = opened(tmp_path)
    begin(record, monitor)
    monitor.take(status("node-0", online=True), *at())
    monitor.take(report("node-0", "node-0"), *at())
    monitor.linked(at(1)[0], is_connected=False)
    away = monitor.tick(*at(300), lambda: FIGURES)
    assert "node" not in {point.measurement for point in away}
    monitor.linked(at(301)[0], is_connected=True)
    back = monitor.samples(*at(302), lambda: FIGURES)
    assert [point.fields["state"] for point in back if point.measurement == "node"] == [3]


def test_an_unfit_node_is_told_apart(tmp_path: Path) -> None:
    record, monitor = opened(tmp_path)
    begin(record, monitor)
    ill = NodeStatus(node="node-0", online=True, instance="i", problem="the disk is full")
    [point] = [p for p in monitor.take(delivered("fedmq/v2/r/nodes/node-0/status", ill.to_payload()), *at()) if p.measurement == "node"]
    assert (point.fields["state"], point.fields["online"], point.fields["fit"]) == (2, 1, 0)


@pytest.mark.parametrize(
    ("index", "names", "num_classes", "label"),
    [
        (3, ("a", "b", "c", "lymphocyte"), 8, "3 lymphocyte"),
        (3, (), 8, "3"),
        (3, (), 11, "03"),
        (0, ("0", "1"), 2, "0"),
        (1, ("class 0", "class 1"), 2, "1"),
        (1, ("x", 'say "hi" \\ now\n'), 2, "1 say hi  now"),
        (0, ("y" * 200,), 1, "0 " + "y" * 64),
    ],
)
def test_a_classs_label(index: int, names: tuple[str, ...], num_classes: int, label: str) -> None:
    assert class_label(index, names, num_classes) == label


def test_what_a_class_is_taken_for() -> None:
    labels = ["0 a", "1 b", "2 c"]
    assert row_fields(0, [5, 3, 2], labels) == {"images": 10, "taken_for": "1 b", "taken_for_share": 0.3}
    assert row_fields(1, [2, 6, 2], labels)["taken_for"] == "0 a", "the first of two equals"
    assert row_fields(2, [0, 0, 4], labels) == {"images": 4, "taken_for": "none", "taken_for_share": 0.0}
    assert row_fields(2, [0, 0, 0], labels)["images"] == 0


def test_notes_say_what_is_waited_for_and_never_the_state_again() -> None:
    awaiting = RoundsSoFar(awaited=("pi-3", "pi-4"))
    for condition, reason, expected in (
        (RunCondition.TRAINING, "", "pi-3, pi-4 to train"),
        (RunCondition.FINISHED, "all rounds done", "all rounds done"),
        (RunCondition.PAUSED, "by the operator", "by the operator"),
        (RunCondition.FAILED, "", "no reason given"),
    ):
        assert note_of(condition, reason=reason, rounds=awaiting, num_missing=0) == expected
