"""One place decides what state a run and a node are in."""

from __future__ import annotations

from typing import Any

import pytest

from federation import topics
from federation.condition import NodeCondition, RunCondition, bare_reason, condition_of_node, condition_of_run
from federation.messages import MetricPoint, MetricsReport, NodeStatus, RunState
from fedmq.status import describe
from fedmq.watch_state import WatchState


def state(phase: str, reason: str = "") -> RunState:
    """Return a run's state."""
    values: dict[str, Any] = {"run": "r", "phase": phase, "round_number": 2, "num_rounds": 5, "epoch": 1, "method": "s", "model": {}}
    return RunState.model_validate(values | {"reason": reason})


@pytest.mark.parametrize(
    ("phase", "reason", "is_evaluating", "condition"),
    [
        ("waiting", "waiting for nodes: 1 of at least 3 are fit", False, RunCondition.WAITING),
        ("paused", "paused: by the operator", False, RunCondition.PAUSED),
        ("training", "", False, RunCondition.TRAINING),
        ("training", "", True, RunCondition.EVALUATING),
        ("waiting", "", True, RunCondition.WAITING),
        ("finished", "all rounds done", False, RunCondition.FINISHED),
        ("stopped", "stopped: by the operator", False, RunCondition.STOPPED),
        ("stopped", "3 rounds in a row ended below quorum", False, RunCondition.FAILED),
        ("stopped", "the aggregator's work failed: MemoryError", False, RunCondition.FAILED),
    ],
)
def test_a_runs_condition(phase: str, reason: str, is_evaluating: bool, condition: RunCondition) -> None:  # noqa: FBT001 - a table
    assert condition_of_run(state(phase, reason), is_evaluating=is_evaluating) is condition
    assert condition.has_ended == (phase in {"finished", "stopped"})


def test_a_reason_does_not_say_the_state_again() -> None:
    assert bare_reason(state("stopped", "stopped: by the operator")) == "by the operator"
    assert bare_reason(state("paused", "paused: over night")) == "over night"
    assert bare_reason(state("finished", "all rounds done")) == "all rounds done"


@pytest.mark.parametrize(
    ("online", "problem", "seconds", "condition"),
    [
        (False, "", 0, NodeCondition.OFFLINE),
        (False, "no images", 1e9, NodeCondition.OFFLINE),
        (True, "", 59, NodeCondition.ONLINE),
        (True, "", 61, NodeCondition.SILENT),
        (True, "no images", 0, NodeCondition.UNFIT),
        (True, "no images", 61, NodeCondition.SILENT),
    ],
)
def test_a_nodes_condition(online: bool, problem: str, seconds: float, condition: NodeCondition) -> None:  # noqa: FBT001 - a table
    status = NodeStatus(node="n", online=online, instance="i", problem=problem)
    assert condition_of_node(status, silent_seconds=seconds) is condition


def test_status_and_watch_use_the_same_words() -> None:
    failed = state("stopped", "3 rounds in a row ended below quorum")
    ill = NodeStatus(node="n", online=True, instance="i", problem="no images")
    messages = {str(topics.StateTopic("r")): failed.to_payload(), str(topics.StatusTopic("r", "n")): ill.to_payload()}
    [run], [node] = describe(messages)
    assert (run["state"], node["state"]) == ("failed", "unfit")
    watched = WatchState(run="r")
    for topic, payload in messages.items():
        watched.take(topic, payload)
    told = watched.to_json()
    assert (told["state"]["state"], told["nodes"][0]["state"]) == ("failed", "unfit")
    assert watched.has_ended


def test_watch_calls_a_node_silent_that_reported_and_stopped() -> None:
    now = 0.0
    watched = WatchState(run="r", monotonic=lambda: now)
    watched.take(str(topics.StatusTopic("r", "n")), NodeStatus(node="n", online=True, instance="i").to_payload())
    now = 1000.0
    assert watched.condition_of("n") is NodeCondition.ONLINE, "it never reported anything: its will speaks for it"
    report = MetricsReport(node="n", points=[MetricPoint(measurement="device", time_ns=1, fields={"cpu": 0.5})])
    watched.take(str(topics.MetricsTopic("r", "n")), report.to_payload())
    now = 1061.0
    assert watched.condition_of("n") is NodeCondition.SILENT
