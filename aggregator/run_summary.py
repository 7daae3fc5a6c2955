"""A run as one row: its state, how far it is, what it waits for. Pure: no clock, no threads, no I/O.

The points of `run_summary`, whether the aggregator records them as the run goes or `fedmq metrics import` derives them
for a journal of before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from aggregator.class_points import class_label
from federation.condition import RunCondition

NUM_ROUNDS_FOR_ESTIMATE = 10
"""Rounds whose median length foretells the rest: enough to outvote one straggler, few enough to follow a change."""

MAX_NAMED_NODES = 3
"""Nodes a run waits for that are named; of more a tile shows only how many."""

UNKNOWN = "–"
"""What a page shows where nothing is known now."""

LINK_MARGIN_MS = 1000
"""A link to an ended run shows a second more than the run: its last points are in view."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What does not change while a run goes on."""

    dataset: str
    method: str
    """The strategy's name."""
    num_classes: int
    num_rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsSoFar:
    """What came of the rounds until now: a snapshot, which one thread may make and another read."""

    num_done: int = 0
    accuracy: float | None = None
    f1_macro: float | None = None
    worst_class: str = ""
    """A label."""
    worst_accuracy: float | None = None
    recent_seconds: tuple[float, ...] = ()
    """Lengths of the last `NUM_ROUNDS_FOR_ESTIMATE` rounds."""
    is_evaluating: bool = False
    awaited: tuple[str, ...] = ()
    """Nodes whose update the open round still waits for."""

    def after(self, entry: Mapping[str, Any], class_accuracy: Sequence[float], class_names: Sequence[str]) -> RoundsSoFar:
        """Return the snapshot after one more round.

        Args:
            entry: the round as the summary shows it.
            class_accuracy: of the last evaluation, in label order; empty before the first.
            class_names: in label order.
        """
        worst = min(range(len(class_accuracy)), key=class_accuracy.__getitem__) if class_accuracy else None
        return replace(
            self,
            num_done=entry["round_number"],
            accuracy=entry["accuracy"],
            f1_macro=entry["f1_macro"],
            worst_class="" if worst is None else class_label(worst, class_names, len(class_accuracy)),
            worst_accuracy=None if worst is None else class_accuracy[worst],
            recent_seconds=(*self.recent_seconds, entry["seconds"])[-NUM_ROUNDS_FOR_ESTIMATE:],
            is_evaluating=False,
            awaited=(),
        )

    def seconds_left(self, num_rounds: int) -> float | None:
        """Return the rounds left times the median of the last ten; None before the first."""
        return max(0, num_rounds - self.num_done) * median(self.recent_seconds) if self.recent_seconds else None


def summary_fields(
    condition: RunCondition,
    *,
    facts: RunFacts,
    rounds: RoundsSoFar,
    note: str,
    started_ms: int,
    now_ms: int,
    nodes: tuple[int, int] | None,
) -> dict[str, Any]:
    """Return the fields of a `run_summary` point.

    Args:
        condition: what state the run is in.
        facts: of the run.
        rounds: until now.
        note: what it waits for, or why it has ended.
        started_ms: when its present life began, in milliseconds since 1970.
        now_ms: the point's time, likewise.
        nodes: how many are online, and of how many; None where nobody knows.
    """
    # The last value counts: what is not said anew would stand as if it were now.
    seconds_left = rounds.seconds_left(facts.num_rounds) if condition in {RunCondition.TRAINING, RunCondition.EVALUATING} else 0.0
    online = f"{nodes[0]} of {nodes[1]}" if nodes else None
    return {
        "state": int(condition),
        "seen_ms": now_ms,
        "note": note,
        "dataset": facts.dataset,
        "method": facts.method,
        "num_classes": facts.num_classes,
        "started_ms": started_ms,
        "ended_ms": now_ms if condition.has_ended else None,
        "until": str(now_ms + LINK_MARGIN_MS) if condition.has_ended else "now",
        "rounds_done": rounds.num_done,
        "num_rounds": facts.num_rounds,
        "rounds": f"{rounds.num_done} of {facts.num_rounds}",
        "nodes_online": nodes[0] if nodes else None,
        "num_nodes": nodes[1] if nodes else None,
        "nodes": UNKNOWN if condition.has_ended else online,
        "accuracy": rounds.accuracy,
        "f1_macro": rounds.f1_macro,
        "worst_accuracy": rounds.worst_accuracy,
        "worst_class": rounds.worst_class or None,
        "seconds": max(0, now_ms - started_ms) / 1000,
        "seconds_left": seconds_left,
    }


def note_of(condition: RunCondition, *, reason: str, rounds: RoundsSoFar, num_missing: int) -> str:
    """Return what a run waits for, or why it has ended; not its state again.

    Args:
        condition: what state it is in.
        reason: as its aggregator gives it, without the state's word.
        rounds: until now.
        num_missing: how many more fit nodes a round needs.
    """
    match condition:
        case RunCondition.WAITING:
            return f"{num_missing} more node{'' if num_missing == 1 else 's'}" if num_missing > 0 else "the next round"
        case RunCondition.TRAINING if rounds.awaited:
            named = ", ".join(rounds.awaited[:MAX_NAMED_NODES])
            left = len(rounds.awaited) - MAX_NAMED_NODES
            return f"{named}{f' and {left} more' if left > 0 else ''} to train"
        case RunCondition.TRAINING:
            return "the aggregation"
        case RunCondition.EVALUATING:
            return "the test of the new model"
        case _:
            return reason or "no reason given"
