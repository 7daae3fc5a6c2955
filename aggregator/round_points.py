"""A round's result as measured points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from federation.errors import RejectReason
from federation.messages import NodeOutcome, RoundResult
from federation.metric_types import MAX_CONFUSION_CLASSES
from federation.metrics import Point, make_point

NUM_ROUNDS_FOR_ESTIMATE = 10
"""Rounds whose median length foretells the rest: enough to outvote one straggler, few enough to follow a change."""

_REASONS = frozenset(RejectReason) | {"late", "duplicate"}


def points_of_result(
    result: RoundResult, *, rounds: Sequence[Mapping[str, Any]], num_rounds: int, tags: Mapping[str, str], time_ns: int
) -> list[Point]:
    """Return every point of one round.

    Args:
        result: the round.
        rounds: the summary's rounds so far, this one last.
        num_rounds: the run's length.
        tags: run and strategy.
        time_ns: when the round ended; all its points share it.
    """
    number = {"round_number": result.round_number}
    points = [make_point("round", tags, _round_fields(result, rounds, num_rounds), time_ns)]
    points += [
        make_point("outcome", {**tags, **_outcome_tags(outcome)}, _outcome_fields(outcome) | number, time_ns) for outcome in result.outcomes
    ]
    points += [
        make_point("diagnostic", {**tags, "name": name}, {"value": value, **number}, time_ns) for name, value in result.diagnostics.items()
    ]
    for outcome in result.outcomes:
        for index, share in enumerate(outcome.metrics.validation_class_accuracy if outcome.metrics else ()):
            local = {**tags, "node": outcome.node, "class": f"{index:02d}"}
            points.append(make_point("local_class_accuracy", local, {"value": share, **number}, time_ns))
    if result.evaluation is None:
        return points
    for index, share in enumerate(result.evaluation.class_accuracy):
        points.append(make_point("class_accuracy", {**tags, "class": f"{index:02d}"}, {"value": share, **number}, time_ns))
    matrix = result.evaluation.confusion_matrix
    if len(matrix) <= MAX_CONFUSION_CLASSES:
        for index, row in enumerate(matrix):
            counts = {f"predicted_{column:02d}": count for column, count in enumerate(row)}
            points.append(make_point("confusion", {**tags, "class": f"{index:02d}"}, {**counts, **number}, time_ns))
    return points


def _round_fields(result: RoundResult, rounds: Sequence[Mapping[str, Any]], num_rounds: int) -> dict[str, Any]:
    current = rounds[-1]
    scores = {name: current.get(name) for name in ("accuracy", "f1_macro", "f1_weighted", "auc", "loss")}
    before = rounds[-2]["accuracy"] if len(rounds) > 1 else None
    phases = result.phase_seconds
    collect = phases.get("collect", 0.0)
    download, train = phases.get("download", 0.0), phases.get("train", 0.0)
    recent = [entry["seconds"] for entry in rounds[-NUM_ROUNDS_FOR_ESTIMATE:]]
    return {
        "round_number": result.round_number,
        **scores,
        "accuracy_change": scores["accuracy"] - before if scores["accuracy"] is not None and before is not None else None,
        "seconds": result.seconds,
        "collect_seconds": collect,
        "download_seconds": download,
        "train_seconds": train,
        # A node that stored its update in an earlier attempt reports times that lie before this collection.
        "upload_seconds": max(0.0, collect - download - train),
        "aggregate_seconds": phases.get("aggregate", 0.0),
        "evaluate_seconds": phases.get("evaluate", 0.0),
        "cohort": len(result.outcomes),
        "accepted": result.accepted,
        "rejected": result.rejected,
        "discarded": result.discarded,
        "stragglers": result.stragglers,
        "aggregated": int(result.aggregated),
        "bytes_up": result.bytes_up,
        "bytes_down": result.bytes_down,
        "num_rounds": num_rounds,
        "progress": min(1.0, result.round_number / num_rounds),
        "seconds_left": max(0, num_rounds - result.round_number) * median(recent),
    }


def _outcome_tags(outcome: NodeOutcome) -> dict[str, str]:
    reason = outcome.reason.split(":", 1)[0]
    known = reason if reason in _REASONS else "other"
    return {"node": outcome.node, "reason": "none" if outcome.outcome == "accepted" else known}


def _outcome_fields(outcome: NodeOutcome) -> dict[str, int]:
    flags = {name: int(outcome.outcome == name) for name in ("accepted", "rejected", "discarded")}
    return {**flags, "num_examples": outcome.num_examples}
