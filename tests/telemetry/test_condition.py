"""One place decides what state a run and a node are in."""

from __future__ import annotations

from typing import Any

import pytest

from federation.condition import NodeCondition, RunCondition, bare_reason, condition_of_node, condition_of_run
from federation.messages import NodeStatus, RunState


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
