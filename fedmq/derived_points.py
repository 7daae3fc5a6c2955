"""Brings the points of an older journal up to date: what newer runs record besides, found again in what was recorded.

A journal of before `run_summary` lacks it, the classes' labels, the nodes' state and the server's name. Points that
have them pass unchanged, so a journal of today is written as it is.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aggregator.class_points import class_label, row_fields
from aggregator.run_summary import RoundsSoFar, RunFacts, note_of, summary_fields
from federation.condition import PAUSED, STOPPED_BY_OPERATOR, NodeCondition, RunCondition
from federation.metrics import SERVER, Point, make_point

ALL_DONE = "all rounds done"
UNKNOWN_DATASET = "unknown"

_ENDED = re.compile(r"run (finished|stopped)(?:: (.*))?", re.S)
"""The text of the event `run_ended`."""


@dataclass(slots=True)
class _Run:
    """What one run's points say of its course."""

    strategy: str
    first_ns: int
    num_rounds: int = 0
    has_summary: bool = False
    rounds: dict[int, Point] = field(default_factory=dict)
    """By number; of a round that was repeated the last."""
    recalls: dict[int, dict[int, float]] = field(default_factory=lambda: defaultdict(dict))
    """Time -> class -> recall."""
    matrix: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """(time, class) -> its row of the confusion matrix."""
    num_classes: int = 0
    end: tuple[int, RunCondition, str] | None = None
    """Time, state, reason."""

    def take(self, point: Point) -> None:
        """Take in a point."""
        self.first_ns = min(self.first_ns, point.time_ns)
        match point.measurement:
            case "run_summary":
                self.has_summary = True
            case "round" if "round_number" in point.fields:
                self.rounds[int(point.fields["round_number"])] = point
                self.num_rounds = max(self.num_rounds, int(point.fields.get("num_rounds", 0)), int(point.fields["round_number"]))
            case "class_accuracy" if "value" in point.fields:
                self.recalls[point.time_ns][int(point.tags["class"])] = float(point.fields["value"])
                self.num_classes = max(self.num_classes, int(point.tags["class"]) + 1)
            case "local_class_accuracy":
                self.num_classes = max(self.num_classes, int(point.tags["class"]) + 1)
            case "confusion":
                columns = sorted(name for name in point.fields if name.startswith("predicted_"))
                self.matrix[point.time_ns, int(point.tags["class"])] = [int(point.fields[name]) for name in columns]
            case "event" if point.tags.get("kind") == "aggregator_started":
                self.end = None  # it goes on after all
            case "event" if point.tags.get("kind") == "run_ended" and (told := _ENDED.fullmatch(str(point.fields.get("text")))):
                self.end = (point.time_ns, *_end_of(told[1], told[2] or ""))


class History:
    """What a journal's points say of its runs; made of all of them before any is brought up to date.

    Args:
        points: of the whole journal.
        class_names: in label order; empty where the run's folder names none.
        dataset: its name; empty where the run's folder is not there.
    """

    def __init__(self, points: Iterable[Point], *, class_names: Sequence[str] = (), dataset: str = "") -> None:
        self._class_names = class_names
        self._dataset = dataset
        self._runs: dict[str, _Run] = {}
        for point in points:
            run = self._runs.get(point.tags["run"])
            if run is None:
                run = self._runs[point.tags["run"]] = _Run(strategy=point.tags["strategy"], first_ns=point.time_ns)
            run.take(point)

    @property
    def runs(self) -> Collection[str]:
        """The names of the runs."""
        return self._runs.keys()

    def first_times(self) -> Mapping[str, int]:
        """Return run -> the time of its first point, for the runs recorded before there was a summary."""
        return {name: run.first_ns for name, run in self._runs.items() if not run.has_summary}

    def current(self, point: Point) -> Point:
        """Return a point as today's aggregator would have recorded it."""
        match point.measurement:
            case "class_accuracy" | "local_class_accuracy" | "confusion" if "label" not in point.tags:
                return self._labelled(point)
            case "inference" if "node" not in point.tags:
                return make_point("inference", {**point.tags, "node": SERVER}, point.fields, point.time_ns)
            case "node" if "state" not in point.fields:
                state = NodeCondition.ONLINE if point.fields.get("fit") else NodeCondition.UNFIT
                state = state if point.fields.get("online") else NodeCondition.OFFLINE
                return make_point("node", point.tags, {"state": int(state), **point.fields}, point.time_ns)
        return point

    def summaries(self) -> Iterator[Point]:
        """Yield the `run_summary` points that runs without any lack, in order of time."""
        for name, run in self._runs.items():
            if not run.has_summary:
                yield from self._summaries(name, run)

    def _summaries(self, name: str, run: _Run) -> Iterator[Point]:
        facts = RunFacts(
            dataset=self._dataset or UNKNOWN_DATASET, method=run.strategy, num_classes=run.num_classes, num_rounds=max(1, run.num_rounds)
        )
        so_far = RoundsSoFar()
        started_ms = run.first_ns // 10**6

        def summary(time_ns: int, condition: RunCondition, note: str, **more: int) -> Point:
            fields: dict[str, Any] = summary_fields(
                condition, facts=facts, rounds=so_far, note=note, started_ms=started_ms, now_ms=time_ns // 10**6, nodes=None
            )
            return make_point("run_summary", {"run": name, "strategy": run.strategy}, {**fields, **more}, time_ns)

        yield summary(run.first_ns, RunCondition.WAITING, "nodes", life=1)
        last_ns = run.first_ns
        for number, point in sorted(run.rounds.items()):
            recall = run.recalls.get(point.time_ns, {})
            scores = {score: point.fields.get(score) for score in ("accuracy", "f1_macro")}
            entry = {"round_number": number, "seconds": float(point.fields.get("seconds", 0.0)), **scores}
            so_far = so_far.after(entry, [recall[index] for index in sorted(recall)], self._class_names)
            last_ns = max(point.time_ns, last_ns + 1)
            training = RunCondition.TRAINING
            yield summary(last_ns, training, note_of(training, reason="", rounds=so_far, num_missing=0))
        if run.end is not None:
            time_ns, condition, reason = run.end
            yield summary(max(time_ns, last_ns + 1), condition, note_of(condition, reason=reason, rounds=so_far, num_missing=0))
        elif so_far.num_done >= facts.num_rounds:
            yield summary(last_ns + 1, RunCondition.FINISHED, ALL_DONE)

    def _labelled(self, point: Point) -> Point:
        run, index = self._runs[point.tags["run"]], int(point.tags["class"])
        labels = [class_label(number, self._class_names, run.num_classes) for number in range(run.num_classes)]
        fields = dict(point.fields)
        row = run.matrix.get((point.time_ns, index))
        if row is not None and point.measurement == "class_accuracy":
            fields |= row_fields(index, row, labels)
        elif row is not None and point.measurement == "confusion":
            fields["images"] = sum(row)
        return make_point(point.measurement, {**point.tags, "label": labels[index]}, fields, point.time_ns)


def _end_of(phase: str, reason: str) -> tuple[RunCondition, str]:
    """Return state and bare reason of an ended run; the event's words are the protocol's `phase` and `reason`."""
    if phase == "finished":
        return RunCondition.FINISHED, reason or ALL_DONE
    if reason.startswith(STOPPED_BY_OPERATOR):
        return RunCondition.STOPPED, reason.removeprefix(STOPPED_BY_OPERATOR).removeprefix(PAUSED)
    return RunCondition.FAILED, reason
