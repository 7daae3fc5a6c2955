"""A run's record: what a round's result becomes, and that measuring never fails a round."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from aggregator import record as record_module
from aggregator.checkpoint import write_atomically
from aggregator.record import RunRecord
from federation.learning.sets import TensorSet
from federation.messages import Evaluation, LocalMetrics, MetricPoint, MetricsReport, NodeOutcome, RoundResult
from federation.metrics import parse_line
from federation.settings import parse_settings

DIGEST = "a" * 64
START = 1_700_000_000 * 10**9


def result(round_number: int, *, accuracy: float | None = 0.5, seconds: float = 10.0) -> RoundResult:
    """Return a round of two accepted nodes and a straggler."""
    evaluation = None
    if accuracy is not None:
        scores = {"accuracy": accuracy, "f1_macro": 0.4, "f1_weighted": 0.45, "loss": 1.5}
        evaluation = Evaluation(num_examples=4, class_accuracy=[1.0, 0.0], confusion_matrix=[[2, 0], [2, 0]], **scores)
    metrics = LocalMetrics(loss=1.0, download_seconds=1.0, train_seconds=5.0, samples_per_second=9.0, validation_class_accuracy=[0.5, 0.25])
    return RoundResult(
        run="r",
        round_number=round_number,
        epoch=1,
        previous_result_digest=None,
        method="fedavg",
        aggregated=accuracy is not None,
        global_digest=DIGEST,
        next_global_digest=DIGEST,
        outcomes=[
            NodeOutcome(node="node-0", outcome="accepted", num_examples=10, metrics=metrics),
            NodeOutcome(node="node-1", outcome="rejected", reason="non_finite: tensor 'x' holds NaN"),
            NodeOutcome(node="node-2", outcome="discarded", reason="late"),
        ],
        evaluation=evaluation,
        accepted=1,
        rejected=1,
        discarded=1,
        stragglers=1,
        seconds=seconds,
        phase_seconds={"collect": 8.0, "aggregate": 1.0, "evaluate": 1.0, "download": 1.0, "train": 5.0},
        bytes_up=100,
        bytes_down=300,
        diagnostics={"drift.norm": 0.25},
    )


def opened(tmp_path: Path, *, is_resumed: bool = False) -> RunRecord:
    """Return the record of a run of four rounds."""
    record = RunRecord(out_dir=tmp_path, settings=parse_settings({"run": "r", "num_rounds": 4}), num_nodes=3, is_resumed=is_resumed)
    record.open(DIGEST)
    return record


def test_a_result_becomes_points_of_every_kind(tmp_path: Path) -> None:
    record = opened(tmp_path)
    record.add_result(result(1), START)
    record.add_result(result(2, accuracy=0.4, seconds=20.0), START + 1)
    points = [parse_line(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rounds = [point for point in points if point.measurement == "round"]
    assert "accuracy_change" not in rounds[0].fields
    assert rounds[1].fields["accuracy_change"] == pytest.approx(-0.1)
    assert rounds[1].fields["upload_seconds"] == 2.0
    assert rounds[1].fields["seconds_left"] == 2 * 15.0
    assert rounds[1].fields["progress"] == 0.5
    outcomes = {point.tags["node"]: point for point in points if point.measurement == "outcome" and point.time_ns == START}
    assert {node: point.tags["reason"] for node, point in outcomes.items()} == {"node-0": "none", "node-1": "non_finite", "node-2": "late"}
    assert [outcomes[node].fields[name] for node, name in (("node-0", "accepted"), ("node-1", "rejected"), ("node-2", "discarded"))] == [
        1,
        1,
        1,
    ]
    confusion = [point for point in points if point.measurement == "confusion" and point.time_ns == START]
    assert [(point.tags["class"], point.fields["predicted_00"]) for point in confusion] == [("00", 2), ("01", 2)]
    local = [point.fields["value"] for point in points if point.measurement == "local_class_accuracy" and point.time_ns == START]
    assert local == [0.5, 0.25]
    assert [point.tags["name"] for point in points if point.measurement == "diagnostic"] == ["drift.norm", "drift.norm"]


def test_a_round_below_quorum_keeps_the_scores_it_had(tmp_path: Path) -> None:
    record = opened(tmp_path)
    record.add_result(result(1, accuracy=None), START)
    record.add_result(result(2), START + 1)
    record.add_result(result(3, accuracy=None), START + 2)
    entries = json.loads((tmp_path / "summary.json").read_text())["rounds"]
    assert [entry["accuracy"] for entry in entries] == [None, 0.5, 0.5]


def test_a_resumed_run_goes_on_in_the_same_files(tmp_path: Path) -> None:
    opened(tmp_path).add_result(result(1), START)
    again = opened(tmp_path, is_resumed=True)
    again.add_result(result(1), START + 5)
    again.add_result(result(2), START + 6)
    entries = json.loads((tmp_path / "summary.json").read_text())["rounds"]
    assert [entry["round_number"] for entry in entries] == [1, 2]
    assert sum('"measurement":"round"' in line for line in (tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_an_unwritable_journal_costs_points_and_no_round(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = opened(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with caplog.at_level(logging.WARNING, logger="aggregator"):
        record.add_result(result(1), START)
    assert "journal=unwritable" in caplog.text
    assert json.loads((tmp_path / "summary.json").read_text())["rounds"][0]["accuracy"] == 0.5


def test_one_bad_point_of_a_report_does_not_spoil_the_others(tmp_path: Path) -> None:
    record = opened(tmp_path)
    good = MetricPoint(measurement="train", time_ns=START, fields={"loss": 1.0, "of_a_newer_version": 2.0})
    bad = MetricPoint(measurement="train", time_ns=START, tags={"colour": "red"}, fields={"loss": 1.0})
    late = MetricPoint(measurement="train", time_ns=0, fields={"loss": 1.0})
    report = MetricsReport(node="node-0", round_number=2, points=[bad, good, late])
    points = record.checked_points("node-0", report, now_ns=START)
    assert [dict(point.fields) for point in points] == [{"loss": 1.0, "round_number": 2}]
    assert record.num_rejected_points == 2


def dated(round_number: int) -> RoundResult:
    """Return a round that knows when it ended."""
    return result(round_number).model_copy(update={"ended_ns": START + round_number})


def lines(tmp_path: Path) -> list[str]:
    """Return what is recorded."""
    return sorted((tmp_path / "metrics.jsonl").read_text().splitlines())


@pytest.mark.parametrize(
    "content", [b"", b"{", b"null", b"[]", b'{"rounds": 3, "final": {}}', b'{"rounds": [{}], "final": {}}', b"\0" * 100]
)
def test_damaged_summary_is_made_again_from_the_rounds(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    record = opened(tmp_path)
    results = {number: dated(number) for number in (1, 2, 3)}
    for entry in results.values():
        record.add_result(entry, entry.ended_ns)
    whole, recorded = (tmp_path / "summary.json").read_bytes(), lines(tmp_path)
    (tmp_path / "summary.json").write_bytes(content)
    again = opened(tmp_path, is_resumed=True)
    assert "summary=damaged" in caplog.text
    again.restore(3, results.get)
    assert (tmp_path / "summary.json").read_bytes() == whole
    assert lines(tmp_path) == recorded


@pytest.mark.parametrize("num_lines", [0, 1, 5, 12, 15, 30])
def test_points_that_a_power_cut_took_are_recorded_again_as_they_were(tmp_path: Path, num_lines: int) -> None:
    record = opened(tmp_path)
    results = {number: dated(number) for number in (1, 2, 3)}
    for entry in results.values():
        record.add_result(entry, entry.ended_ns)
    recorded = lines(tmp_path)
    kept = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)[:num_lines]
    (tmp_path / "metrics.jsonl").write_text("".join(kept))
    opened(tmp_path, is_resumed=True).restore(3, results.get)
    assert lines(tmp_path) == recorded


def test_rounds_set_aside_with_the_journal_are_not_recorded_again(tmp_path: Path) -> None:
    record = opened(tmp_path)
    results = {number: dated(number) for number in (1, 2)}
    for entry in results.values():
        record.add_result(entry, entry.ended_ns)
    (tmp_path / "metrics.jsonl").rename(tmp_path / "metrics.1.jsonl")
    opened(tmp_path, is_resumed=True).restore(2, results.get)
    assert lines(tmp_path) == []


def test_a_long_runs_summary_is_written_less_and_less_often_and_whole_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written after every round it would cost each more than the one before: 6.6 MB at round 300 with the ledger, seen once."""
    written: list[int] = []

    def counting(path: Path, data: bytes, *, durable: bool = False) -> None:
        if path.name == "summary.json":
            written.append(len(data))
        write_atomically(path, data, durable=durable)

    monkeypatch.setattr(record_module, "write_atomically", counting)
    record = opened(tmp_path)
    for number in range(1, 501):
        record.add_result(result(number), START + number)
    stored = json.loads((tmp_path / "summary.json").read_text())["rounds"]
    assert len(stored) >= 490, "no more than a fiftieth is missing, whatever happens"
    record.close(TensorSet({"w": np.zeros(3, np.float32)}))
    assert [entry["round_number"] for entry in json.loads((tmp_path / "summary.json").read_text())["rounds"]] == list(range(1, 501))
    entry_bytes = written[-1] / 500
    assert sum(written) / 500 < 80 * entry_bytes
