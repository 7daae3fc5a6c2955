"""A round's result as measured points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aggregator.class_points import class_label, row_fields
from aggregator.run_summary import NUM_ROUNDS_FOR_ESTIMATE, RoundsSoFar
from federation.errors import RejectReason
from federation.messages import NodeOutcome, RoundResult
from federation.metric_types import MAX_CONFUSION_CLASSES
from federation.metrics import Point, make_point

_REASONS = frozenset(RejectReason) | {"late", "duplicate"}


def points_of_result(
    result: RoundResult,
    *,
    rounds: Sequence[Mapping[str, Any]],
    num_rounds: int,
    class_names: Sequence[str],
    tags: Mapping[str, str],
    time_ns: int,
) -> list[Point]:
    """Return every point of one round.

    Args:
        result: the round.
        rounds: the summary's rounds so far, this one last.
        num_rounds: the run's length.
        class_names: in label order; empty where the data name none.
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
        shares = outcome.metrics.validation_class_accuracy if outcome.metrics else []
        for index, label in enumerate(_labels(len(shares), class_names)):
            local = {**tags, "node": outcome.node, "class": f"{index:02d}", "label": label}
            points.append(make_point("local_class_accuracy", local, {"value": shares[index], **number}, time_ns))
    if result.evaluation is None:
        return points
    shares, matrix = result.evaluation.class_accuracy, result.evaluation.confusion_matrix
    labels = _labels(len(shares), class_names)
    for index, label in enumerate(labels):
        tagged = {**tags, "class": f"{index:02d}", "label": label}
        row = matrix[index] if len(matrix) == len(shares) else []
        told = row_fields(index, row, labels) if len(row) == len(shares) else {}
        points.append(make_point("class_accuracy", tagged, {"value": shares[index], **told, **number}, time_ns))
        if told and len(matrix) <= MAX_CONFUSION_CLASSES:
            counts = {f"predicted_{column:02d}": count for column, count in enumerate(row)}
            points.append(make_point("confusion", tagged, {"images": told["images"], **counts, **number}, time_ns))
    return points


def _labels(num_classes: int, class_names: Sequence[str]) -> list[str]:
    return [class_label(index, class_names, num_classes) for index in range(num_classes)]


def _round_fields(result: RoundResult, rounds: Sequence[Mapping[str, Any]], num_rounds: int) -> dict[str, Any]:
    current = rounds[-1]
    scores = {name: current.get(name) for name in ("accuracy", "f1_macro", "f1_weighted", "auc", "loss")}
    before = rounds[-2]["accuracy"] if len(rounds) > 1 else None
    phases = result.phase_seconds
    collect = phases.get("collect", 0.0)
    download, train = phases.get("download", 0.0), phases.get("train", 0.0)
    so_far = RoundsSoFar(
        num_done=result.round_number, recent_seconds=tuple(entry["seconds"] for entry in rounds[-NUM_ROUNDS_FOR_ESTIMATE:])
    )
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
        "left_out": sum(outcome.weight == 0 for outcome in result.outcomes),
        "aggregated": int(result.aggregated),
        "bytes_up": result.bytes_up,
        "bytes_down": result.bytes_down,
        "num_rounds": num_rounds,
        "progress": min(1.0, result.round_number / num_rounds),
        "seconds_left": so_far.seconds_left(num_rounds),
    }


def _outcome_tags(outcome: NodeOutcome) -> dict[str, str]:
    reason = outcome.reason.split(":", 1)[0]
    known = reason if reason in _REASONS else "other"
    return {"node": outcome.node, "reason": "none" if outcome.outcome == "accepted" else known}


def _outcome_fields(outcome: NodeOutcome) -> dict[str, int | float | None]:
    flags = {name: int(outcome.outcome == name) for name in ("accepted", "rejected", "discarded")}
    return {**flags, "num_examples": outcome.num_examples, "weight": outcome.weight, "distance": outcome.distance}
