"""Every query of every panel, variable, annotation and alert, run against a real database filled by a real run."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.telemetry.grafana import PanelQuery, alert_queries, filled, queries
from tests.telemetry.run_fixture import NUM_ROUNDS, RUN, MeasuredRun

pytestmark = [pytest.mark.slow, pytest.mark.database, pytest.mark.mosquitto]

CHOICES: dict[str, dict[str, str | list[str]]] = {
    "all": {"run": RUN, "node": ".*", "strategy": ".*"},
    "some": {"run": [RUN, "another-run"], "node": ["node-0", "node-2"], "strategy": ["fedavg", "fedprox"]},
    "one": {"run": RUN, "node": ["node-0"], "strategy": ["fedavg"]},
}
"""What a person may have chosen in the variables, as Grafana writes it into a regular expression."""


def ask(measured: MeasuredRun, query: PanelQuery, choice: str = "all") -> list[dict[str, Any]]:
    """Return the series of a query."""
    text = filled(query.text, CHOICES[choice], since_ns=measured.since_ns, until_ns=measured.until_ns)
    return measured.server.query(text, database=query.database)


def find(dashboard: str, panel: str) -> PanelQuery:
    """Return one query by its place."""
    [query] = [query for query in queries() if query.dashboard == dashboard and query.panel == panel]
    return query


def columns(measured: MeasuredRun, dashboard: str, panel: str) -> dict[tuple[str, ...], dict[str, list[Any]]]:
    """Return what a panel's query gives: tag values -> column -> values in order of time."""
    result = {}
    for series in ask(measured, find(dashboard, panel)):
        rows = sorted(series["values"])
        key = tuple(value for _, value in sorted(series.get("tags", {}).items()))
        result[key] = {name: [row[index] for row in rows] for index, name in enumerate(series["columns"])}
    return result


def measures_diagnostics(measured: MeasuredRun) -> bool:
    """Return whether the run's strategy says anything of itself: FedAvg does not."""
    return '"measurement":"diagnostic"' in (measured.out_dir / "metrics.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("query", [pytest.param(query, id=str(query)) for query in queries()])
def test_every_query_returns_sane_rows(measured: MeasuredRun, query: PanelQuery, choice: str) -> None:
    series = ask(measured, query, choice)
    if "diagnostic" in query.text and not measures_diagnostics(measured):
        assert series == []
        return
    values = [
        value for entry in series for row in entry["values"] for name, value in zip(entry["columns"], row, strict=True) if name != "time"
    ]
    found = [value for value in values if value is not None]
    assert found, f"no rows: {query.text}"
    numbers = [value for value in found if isinstance(value, (int, float))]
    assert all(math.isfinite(value) for value in numbers)
    if "accuracy" in query.text or "cpu" in query.text or ("_used" in query.text and "bytes" not in query.text):
        assert all(number >= 0 for number in numbers)


@pytest.mark.parametrize("query", [pytest.param(query, id=str(query)) for query in alert_queries()])
def test_every_alerts_query_returns_rows(measured: MeasuredRun, query: PanelQuery) -> None:
    series = ask(measured, query)
    assert series, query.text
    assert all(len(entry["columns"]) == 2 for entry in series), "an alert compares one value"
    assert all(isinstance(entry["values"][-1][1], (int, float)) for entry in series)


def test_scores_are_the_summarys(measured: MeasuredRun) -> None:
    rounds = measured.summary["rounds"]
    [scores] = columns(measured, "federation", "Accuracy and F1 on the test set A").values()
    for name in ("accuracy", "f1_macro", "f1_weighted"):
        assert scores[name] == [entry[name] for entry in rounds]
    [loss] = columns(measured, "federation", "Loss on the test set A").values()
    assert loss["loss"] == [entry["loss"] for entry in rounds]
    [number] = columns(measured, "federation", "Round A").values()
    assert number["round_number"] == list(range(1, NUM_ROUNDS + 1))
    [progress] = columns(measured, "federation", "Progress A").values()
    assert progress["progress"][-1] == 1.0


def test_classes_and_confusion_are_the_summarys(measured: MeasuredRun) -> None:
    final = measured.summary["final"]
    classes = columns(measured, "federation", "Accuracy per class A")
    assert [classes[f"{index:02d}",]["value"][-1] for index in range(10)] == final["class_accuracy"]
    matrix = columns(measured, "federation", "Last confusion matrix A")
    for index, row in enumerate(final["confusion_matrix"]):
        last = matrix[f"{index:02d}",]
        assert [last[f"predicted_{column:02d}"][-1] for column in range(10)] == row
    [sums] = {sum(map(sum, final["confusion_matrix"]))}
    assert sums > 100


def test_outcomes_and_bytes_are_the_summarys(measured: MeasuredRun) -> None:
    rounds = measured.summary["rounds"]
    [outcomes] = columns(measured, "federation", "Outcome of each round A").values()
    for name in ("accepted", "rejected", "discarded"):
        assert outcomes[name] == [entry[name] for entry in rounds]
    [sizes] = columns(measured, "federation", "Bytes A").values()
    assert sizes["bytes_up"] == [entry["bytes_up"] for entry in rounds]
    assert sizes["bytes_down"] == [entry["bytes_down"] for entry in rounds]
    per_node = columns(measured, "federation", "Outcome per node A")
    assert {key: value["accepted"] for key, value in per_node.items()} == {(f"node-{index}",): [NUM_ROUNDS] for index in range(3)}


def test_a_rounds_seconds_are_its_phases(measured: MeasuredRun) -> None:
    rounds = measured.summary["rounds"]
    [phases] = columns(measured, "federation", "Where a round's seconds went A").values()
    for index, entry in enumerate(rounds):
        assert sum(values[index] for name, values in phases.items() if name != "time") == pytest.approx(
            entry["seconds"], rel=0.05, abs=0.05
        )


def test_table_3_is_the_summarys(measured: MeasuredRun) -> None:
    final, rounds = measured.summary["final"], measured.summary["rounds"]
    [last] = columns(measured, "compare-runs", "Table 3 A").values()
    for name in ("accuracy", "f1_macro", "f1_weighted"):
        assert last[name] == [final[name]]
    [best] = columns(measured, "compare-runs", "Table 3 B").values()
    assert best["best accuracy"] == [max(entry["accuracy"] for entry in rounds)]
    [hardest] = columns(measured, "compare-runs", "Table 3 C").values()
    assert hardest["hardest class"] == [min(final["class_accuracy"])]


def test_every_node_and_engine_reported(measured: MeasuredRun) -> None:
    engines = columns(measured, "onnx", "Latest figures A")
    assert set(engines) >= {(engine, f"node-{index}") for engine in ("torch", "onnx") for index in range(3)}
    for key, latest in engines.items():
        if key[0] == "onnx":
            assert latest["max_abs_difference"][-1] < 1e-3
            torch = engines["torch", key[1]]
            assert latest["accuracy"] == torch["accuracy"]
    assert set(columns(measured, "edge-nodes", "Training speed A")) == {("node-0",), ("node-1",), ("node-2",)}


def test_the_pis_own_figures_arrive(measured: MeasuredRun) -> None:
    heat = columns(measured, "edge-nodes", "Temperature A")["node-0",]
    assert {value for value in heat["max"] if value is not None} == {58.4}
    throttled = columns(measured, "edge-nodes", "Throttled A")["node-0",]
    assert {value for value in throttled["max"] if value is not None} == {0}


def test_every_point_is_in_the_database_once(measured: MeasuredRun) -> None:
    lines = [json.loads(line) for line in (measured.out_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    names = {line["measurement"] for line in lines}
    for name in names:
        stored = max(measured.server.count(name, database) for database in ("fedmq", "fedmq_samples"))
        assert stored == sum(line["measurement"] == name for line in lines), name


def test_a_healthy_run_alerts_nobody(measured: MeasuredRun) -> None:
    """But for the nodes' leaving at the run's end, which lasts shorter than the five minutes that rule waits."""
    from tests.telemetry.grafana import rules

    for rule, query in zip(rules(), alert_queries(), strict=True):
        if rule["uid"] in {"fedmq-node-offline", "fedmq-disk-node", "fedmq-disk-server"}:
            continue  # the disks are this machine's
        evaluator = rule["data"][2]["model"]["conditions"][0]["evaluator"]
        for series in ask(measured, query):
            last = series["values"][-1][1]
            assert not (last > evaluator["params"][0] if evaluator["type"] == "gt" else last < evaluator["params"][0]), (
                rule["uid"],
                series,
            )
