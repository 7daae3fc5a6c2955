"""The run's record on disk: summary.json, metrics.jsonl and the model.

The journal is true after every round. The summary holds all rounds and would cost each round more than the one before: in a long
run it is written after every fiftieth part of its rounds, at the end, and when the run is taken up again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aggregator.checkpoint import write_atomically
from aggregator.journal import Journal
from aggregator.round_points import points_of_result
from aggregator.run_life import Life, begin_life
from aggregator.run_summary import RoundsSoFar, RunFacts
from federation.codec import write_params
from federation.condition import RunCondition
from federation.errors import MessageError
from federation.learning.sets import TensorSet
from federation.messages import Evaluation, MetricPoint, MetricsReport, RoundResult
from federation.metrics import SERVER, Point, point_of_node
from federation.rejections import Rejections
from federation.settings import RunSettings

logger = logging.getLogger("aggregator")

SUMMARY_PART = 50
"""The summary is written when it lacks a fiftieth of the rounds it would hold: after each of the first fifty, and in all about
fifty entries' worth of writing a round, however long the run."""

_SCORES = ("accuracy", "f1_macro", "f1_weighted", "auc", "loss")
_COUNTS = ("accepted", "rejected", "discarded", "stragglers", "bytes_up", "bytes_down")


@dataclass(slots=True, kw_only=True)
class RunRecord:
    """Writes a run's folder.

    Args:
        out_dir: `summary.json`, `metrics.jsonl` and `model.safetensors` go here.
        settings: the run's settings.
        num_nodes: how many nodes the summary names.
        is_resumed: keep what an earlier process of this run recorded.
    """

    out_dir: Path
    settings: RunSettings
    num_nodes: int
    is_resumed: bool = False
    class_names: tuple[str, ...] = ()
    rejections: Rejections = field(default_factory=lambda: Rejections(logger))
    """Payloads dropped before they could concern a round."""
    journal: Journal = field(init=False)
    takes_metrics: bool = True
    """Whether the service hands the nodes' points over; not where a `Telemetry` does."""
    num_rejected_points: int = 0
    """Points of nodes outside docs/metrics.md."""
    so_far: RoundsSoFar = field(default_factory=RoundsSoFar)
    """What came of the rounds until now. Replaced, never changed: another thread may read it."""
    _rounds: list[dict[str, Any]] = field(default_factory=list)
    _final: dict[str, Any] = field(default_factory=lambda: _final_scores(None))
    _global_digest: str = ""
    _num_written: int = 0
    """Rounds that the summary on disk holds."""
    _model_digest: str = ""
    """Of model.safetensors, once the run is over."""

    def __post_init__(self) -> None:
        self.journal = Journal(self.out_dir / "metrics.jsonl")

    @property
    def tags(self) -> dict[str, str]:
        """What every point of this run is tagged with."""
        return {"run": self.settings.run, "strategy": self.settings.method.name}

    @property
    def facts(self) -> RunFacts:
        """What does not change while the run goes on."""
        return RunFacts(
            dataset=self.settings.data.name,
            method=self.settings.method.name,
            num_classes=len(self.class_names),
            num_rounds=self.settings.num_rounds,
        )

    def begin_life(self, now_ns: int) -> Life:
        """Return which life of the run begins now, or goes on; once the folder is open.

        Raises:
            OSError: the folder can't be written.
        """
        life = begin_life(self.out_dir, is_resumed=self.is_resumed, first_point_ns=self.journal.first_time_ns(), now_ns=now_ns)
        last = self.journal.last_summary
        is_done = self.so_far.num_done >= self.settings.num_rounds
        return replace(life, is_over=is_done and last is not None and last.fields["state"] == RunCondition.FINISHED)

    def open(self, global_digest: str) -> None:
        """Make the folder; without `is_resumed`, start its files anew."""
        self.out_dir.mkdir(parents=True, exist_ok=True)
        self._global_digest = global_digest
        if self.is_resumed:
            self._take_up_summary()
        self.journal.open(is_resumed=self.is_resumed)
        self._write_summary()

    def restore(self, num_finished: int, read: Callable[[int], RoundResult | None], *, with_points: bool = True) -> None:
        """Record the finished rounds that a crash or a power cut has taken out of the summary or the journal.

        Args:
            num_finished: rounds that are over.
            read: returns a finished round's result; None where there is none any more.
            with_points: False leaves the journal as it is.
        """
        kept = {entry["round_number"]: entry for entry in self._rounds}
        results = {number: read(number) for number in range(1, num_finished + 1) if number not in kept}
        unrecorded = set()
        for number in range(num_finished, 0, -1) if with_points else ():
            if number not in results:
                results[number] = read(number)
            if (result := results[number]) is None:
                continue
            if not result.ended_ns:
                break  # of an older version; when it ended nobody knows
            # The newest that is there may be torn: what is left of its points is added.
            unrecorded.add(number)
            if self.journal.holds(Point(measurement="round", tags=self.tags, fields={}, time_ns=result.ended_ns)):
                break
        self._rounds, self.so_far = [], RoundsSoFar()
        for number in range(1, num_finished + 1):
            result = results.get(number)
            if number in kept:
                self._rounds.append(kept[number])
                self._go_on(kept[number])
            elif result is not None:
                self._add_entry(result)
            if result is not None and number in unrecorded:
                self._record_points(self._points_of(result, result.ended_ns))
        self._write_summary()

    def _take_up_summary(self) -> None:
        summary = self.out_dir / "summary.json"
        try:
            stored = json.loads(summary.read_bytes())
            rounds, final = [dict(entry) for entry in stored["rounds"]], dict(stored["final"])
            numbers = [entry["round_number"] for entry in rounds]
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            # Not written through to the disk after each round: it is made again from the rounds.
            logger.warning("summary=damaged reason=%r; it is written anew", f"{type(error).__name__}: {error}"[:200])
            return
        if numbers != sorted({*numbers}):
            logger.warning("summary=damaged reason='its rounds are out of order'; it is written anew")
            return
        self._rounds, self._final = rounds, final
        for entry in self._rounds:
            self._go_on(entry)

    def add_result(self, result: RoundResult, time_ns: int) -> None:
        """Record a finished round; a round that a restart repeated replaces its first record."""
        while self._rounds and self._rounds[-1]["round_number"] >= result.round_number:
            self._rounds.pop()
        self._add_entry(result)
        self._global_digest = result.next_global_digest
        self._record_points(self._points_of(result, time_ns))
        if len(self._rounds) - self._num_written >= len(self._rounds) / SUMMARY_PART or len(self._rounds) <= self._num_written:
            self._write_summary()

    def _add_entry(self, result: RoundResult) -> None:
        self._rounds.append(summary_entry(result, self._rounds[-1] if self._rounds else None))
        if result.evaluation is not None:
            self._final = _final_scores(result.evaluation)
        self._go_on(self._rounds[-1])

    def _points_of(self, result: RoundResult, time_ns: int) -> list[Point]:
        return points_of_result(
            result,
            rounds=self._rounds,
            num_rounds=self.settings.num_rounds,
            class_names=self.class_names,
            tags=self.tags,
            time_ns=time_ns,
        )

    def note_awaited(self, nodes: Sequence[str]) -> None:
        """Keep whose updates the open round waits for."""
        self.so_far = replace(self.so_far, awaited=tuple(nodes), is_evaluating=False)

    def note_evaluating(self) -> None:
        """Keep that the new global model is being tested."""
        self.so_far = replace(self.so_far, awaited=(), is_evaluating=True)

    def add_metrics(self, node: str, report: MetricsReport) -> None:
        """Record a node's figures as they are stamped; the node's name comes from the topic, not from the report."""
        self._record_points(self.checked_points(node, report, now_ns=None))

    def add_own_metrics(self, points: Sequence[MetricPoint], round_number: int) -> None:
        """Record figures that this side measured, as those of the node `aggregator`."""
        tags = {**self.tags, "node": SERVER}
        sound = [point_of_node(point, tags=tags, round_number=round_number, now_ns=point.time_ns) for point in points]
        self._record_points(sound)

    def checked_points(self, node: str, report: MetricsReport, *, now_ns: int | None) -> list[Point]:
        """Return the sound points of a node's report, and count the others.

        Args:
            node: the sender, by its topic.
            report: its points.
            now_ns: the receiver's clock; None trusts the sender's.
        """
        points = []
        for point in report.points:
            clock_ns = point.time_ns if now_ns is None else now_ns
            try:
                points.append(point_of_node(point, tags={**self.tags, "node": node}, round_number=report.round_number, now_ns=clock_ns))
            except MessageError as error:
                if self.num_rejected_points % 1000 == 0:
                    logger.warning("node=%s point=rejected detail=%r", node, str(error)[:200])
                self.num_rejected_points += 1
        return points

    def close(self, model: TensorSet) -> None:
        """Store the final model beside the summary."""
        self._model_digest = write_params(self.out_dir / "model.safetensors", model, signature=model.signature)
        self._write_summary()

    def _go_on(self, entry: Mapping[str, Any]) -> None:
        self.so_far = self.so_far.after(entry, self._final["class_accuracy"], self.class_names)

    def _record_points(self, points: list[Point]) -> None:
        try:
            self.journal.append(points)
        except OSError as error:  # a full disk costs points, never a round
            logger.warning("journal=unwritable lost_points=%d reason=%r", len(points), str(error))

    def _write_summary(self) -> None:
        summary = {
            "run": self.settings.run,
            "strategy": self.settings.method.name,
            "data": self.settings.data.name,
            "num_nodes": self.num_nodes,
            "seed": self.settings.seed,
            "global_digest": self._global_digest,
            # Nodes may be sent more than the model, a control variate perhaps: that is not in model.safetensors.
            **({"model_digest": self._model_digest} if self._model_digest not in {"", self._global_digest} else {}),
            "rounds": self._rounds,
            "final": self._final,
            "class_names": list(self.class_names),
            "rejected_payloads": self.rejections.counts,
        }
        write_atomically(self.out_dir / "summary.json", json.dumps(summary, indent=1).encode())
        self._num_written = len(self._rounds)


def summary_entry(result: RoundResult, previous: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a round as the summary shows it; `previous` is the entry before it."""
    if result.evaluation is not None:
        quality: dict[str, float | None] = {name: getattr(result.evaluation, name) for name in _SCORES}
    else:
        # A round below quorum leaves the model, and so its scores, as they were.
        quality = {name: previous.get(name) if previous else None for name in _SCORES}
    figures = {name: getattr(result, name) for name in _COUNTS}
    return {"round_number": result.round_number, **quality, "seconds": result.seconds, **figures}


def _final_scores(evaluation: Evaluation | None) -> dict[str, Any]:
    """Return the last evaluation as the summary shows it; nulls before the first."""
    return {
        "accuracy": evaluation.accuracy if evaluation else None,
        "f1_macro": evaluation.f1_macro if evaluation else None,
        "f1_weighted": evaluation.f1_weighted if evaluation else None,
        "auc": evaluation.auc if evaluation else None,
        "class_accuracy": evaluation.class_accuracy if evaluation else [],
        "confusion_matrix": evaluation.confusion_matrix if evaluation else [],
    }
