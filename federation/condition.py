"""What state a run and a node are in, with the words every page, table and rule uses: the one place that decides it.

The protocol's `RunState` says a run's phase; its condition is finer: a stop that nobody asked for has failed, and a
round whose model is being tested is evaluating. The numbers are the points' field `state`.
"""

from __future__ import annotations

from enum import IntEnum

from federation.messages import NodeStatus, RunState

NODE_SILENT_SECONDS = 60.0
"""A node reports its device every 5 s: after twelve missing reports it hangs, or its network is half open."""

RUN_SILENT_SECONDS = 120.0
"""An aggregator speaks every 30 s: after four missing points it is gone, or does not reach the database."""

STOPPED_BY_OPERATOR = "stopped: "
"""How the reason of a stop begins that somebody asked for; any other ended a run that could not go on."""

PAUSED = "paused: "
"""How the reason of a pause begins."""


class RunCondition(IntEnum):
    """What state a run is in; from `FINISHED` on it has ended."""

    PAUSED = 0
    WAITING = 1
    TRAINING = 2
    EVALUATING = 3
    FINISHED = 4
    STOPPED = 5
    FAILED = 6

    @property
    def word(self) -> str:
        """The word for it."""
        return self.name.lower()

    @property
    def has_ended(self) -> bool:
        """Whether the run is over."""
        return self >= RunCondition.FINISHED


class NodeCondition(IntEnum):
    """What state a node is in."""

    OFFLINE = 0
    SILENT = 1
    """Connected, but nothing of any kind was heard of it for `NODE_SILENT_SECONDS`."""
    UNFIT = 2
    """Online with a problem: it sits rounds out."""
    ONLINE = 3

    @property
    def word(self) -> str:
        """The word for it."""
        return self.name.lower()


def condition_of_run(state: RunState, *, is_evaluating: bool = False) -> RunCondition:
    """Return what state a run is in.

    Args:
        state: as the aggregator published it.
        is_evaluating: the new global model is on the test set; only the aggregator itself knows.
    """
    match state.phase:
        case "paused":
            return RunCondition.PAUSED
        case "waiting":
            return RunCondition.WAITING
        case "training":
            return RunCondition.EVALUATING if is_evaluating else RunCondition.TRAINING
        case "finished":
            return RunCondition.FINISHED
        case "stopped":
            return RunCondition.STOPPED if state.reason.startswith(STOPPED_BY_OPERATOR) else RunCondition.FAILED


def condition_of_node(status: NodeStatus, *, silent_seconds: float = 0.0) -> NodeCondition:
    """Return what state a node is in.

    Args:
        status: its last.
        silent_seconds: how long nothing of any kind was heard of it; 0 where that is not known.
    """
    if not status.online:
        return NodeCondition.OFFLINE
    if silent_seconds > NODE_SILENT_SECONDS:
        return NodeCondition.SILENT
    return NodeCondition.UNFIT if status.problem else NodeCondition.ONLINE


def bare_reason(state: RunState) -> str:
    """Return why a run waits or has ended, without the state's own word before it."""
    return state.reason.removeprefix(STOPPED_BY_OPERATOR).removeprefix(PAUSED)
