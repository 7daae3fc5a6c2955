"""Small builders that the machines' tests share."""

from __future__ import annotations

from aggregator.cohort import Expectation
from aggregator.coordinator import Coordinator
from aggregator.events import ControlSeen, Effect, NodeReported, Position, SessionOpened, StateSeen, TimePassed, UpdateCompleted
from federation.messages import Control, LocalMetrics, NodeStatus, RunState
from federation.settings import RunSettings, parse_settings

GLOBAL = "a" * 64
NEXT = "b" * 64
CLASS_NAMES = tuple("abcdefghi")
METRICS = LocalMetrics(loss=0.5, download_seconds=0.1, train_seconds=2.0, samples_per_second=100.0)


def settings(*, num_rounds: int = 2, **rounds: object) -> RunSettings:
    """Return run settings of a short run; keyword arguments are round settings."""
    defaults: dict[str, object] = {"min_nodes": 2, "quorum": 1.0, "grace_seconds": 10.0, "deadline_seconds": 100.0}
    return parse_settings({"run": "r", "num_rounds": num_rounds, "rounds": defaults | rounds})


def status(node: str, **changes: object) -> NodeReported:
    """Return the status report of a fit node, but for the changes."""
    facts: dict[str, object] = {"online": True, "instance": "i1", "num_examples": 10, "image_shape": [3, 28, 28], "num_classes": 9}
    return NodeReported(status=NodeStatus.model_validate({"node": node} | facts | changes))


def coordinator(
    run_settings: RunSettings, *, position: Position | None = None, is_resumed: bool = False, instance: str = "-"
) -> Coordinator:
    """Return a coordinator at the beginning, or at a position."""
    start = position or Position(epoch=1, round_number=1, cohort=(), global_digest=GLOBAL)
    expectation = Expectation(image_shape=(3, 28, 28), num_classes=9, class_names=CLASS_NAMES, global_bytes=1000)
    return Coordinator(settings=run_settings, expectation=expectation, position=start, is_resumed=is_resumed, instance=instance)


def started(run_settings: RunSettings, nodes: tuple[str, ...] = ("n0", "n1")) -> tuple[Coordinator, list[Effect]]:
    """Return a coordinator whose first round has opened at time 1, and the effects that opened it."""
    machine = coordinator(run_settings)
    machine.handle(SessionOpened(session_present=False), 0.0)
    for node in nodes:
        machine.handle(status(node), 0.1)
    return machine, machine.handle(TimePassed(), 1.0)


def completed(node: str, *, round_number: int = 1, sha256: str | None = None, num_examples: int = 10) -> UpdateCompleted:
    """Return a node's whole update."""
    digest = sha256 or f"{round_number:02d}{node.encode().hex():0>62}"[-64:]
    return UpdateCompleted(round_number=round_number, node=node, sha256=digest, num_examples=num_examples, metrics=METRICS)


def state(run_settings: RunSettings, *, epoch: int, phase: str = "training", round_number: int = 1, instance: str = "-") -> RunState:
    """Return a run state as an aggregator of that epoch publishes it."""
    return RunState.model_validate(
        {
            "run": run_settings.run,
            "phase": phase,
            "round_number": round_number,
            "num_rounds": run_settings.num_rounds,
            "epoch": epoch,
            "instance": instance,
            "method": "fedavg",
            "model": {"name": "simple_cnn"},
        }
    )


def wish(wanted: str) -> ControlSeen:
    """Return the event of an operator's wish."""
    return ControlSeen(control=Control.model_validate({"run": "r", "wanted": wanted, "reason": "holidays"}))


def seen(run_settings: RunSettings, *, epoch: int, retained: bool) -> StateSeen:
    """Return the event of such a state on the broker."""
    return StateSeen(state=state(run_settings, epoch=epoch), retained=retained)
