"""The report's tables on ONNX: accuracy and seconds by engine, Tables 6 and 7 of the thesis."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median, quantiles
from typing import Any

from federation.metric_types import STEADY_ROUNDS, STEADY_SPREAD
from federation.metrics import SERVER
from fedmq.report_page import number, paragraph, percent, section, table
from fedmq.run_data import RunData


def accuracy_rows(run: RunData) -> list[dict[str, Any]]:
    """Return Table 6: each node's and the server's accuracy by engine, of the last round it measured."""
    latest: dict[str, dict[str, float]] = defaultdict(dict)
    for point in run.of("inference"):
        if "accuracy" in point.fields:
            latest[point.tags.get("node", SERVER)][point.tags["engine"]] = float(point.fields["accuracy"])
    return [{"node": node, **latest[node]} for node in sorted(latest)]


def seconds_rows(run: RunData) -> list[dict[str, Any]]:
    """Return Table 7: each node's median seconds over its validation share by engine, and the speed-up of ONNX Runtime.

    With it how much rounds differ (interquartile range over median), and which engine the node serves.
    """
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    speedups: dict[str, list[float]] = defaultdict(list)
    served: dict[str, str] = {}
    for point in run.of("inference"):
        node, engine = point.tags.get("node", SERVER), point.tags["engine"]
        if "seconds" in point.fields:
            seconds[node][engine].append(float(point.fields["seconds"]))
        if engine == "onnx" and "speedup" in point.fields:
            speedups[node].append(float(point.fields["speedup"]))
        if point.fields.get("is_current"):
            served[node] = engine
    rows = []
    for node in sorted(seconds):
        medians = {engine: median(values) for engine, values in seconds[node].items()}
        speedup = medians["torch"] / medians["onnx"] if medians.get("torch") and medians.get("onnx") else None
        spread = _spread(speedups[node])
        num_rounds = max(len(values) for values in seconds[node].values())
        rows.append({"node": node, **medians, "speedup": speedup, "spread": spread, "served": served.get(node), "num_rounds": num_rounds})
    return rows


def _spread(values: Sequence[float]) -> float | None:
    """Return the interquartile range over the median; None of fewer values than can tell."""
    if len(values) < STEADY_ROUNDS:
        return None
    lower, _, upper = quantiles(values, n=4, method="inclusive")
    return (upper - lower) / median(values)


def onnx_section(run: RunData) -> str:
    """Return the report's section on ONNX."""
    accuracies, seconds = accuracy_rows(run), seconds_rows(run)
    if not seconds:
        return section("ONNX on the devices (Tables 6 and 7)", paragraph("No node reported ONNX figures in this run.", is_note=True))
    engines = [engine for engine in ("torch", "onnx", "onnx-int8") if any(engine in row for row in seconds)]
    accuracy_table = table(
        ("device", *engines), [(_device(row["node"]), *(percent(row.get(engine)) for engine in engines)) for row in accuracies]
    )
    rows = [
        (
            _device(row["node"]),
            row["served"],
            *(number(row.get(engine), 4) for engine in engines),
            # Nothing that was measured under load is shown as a speed-up.
            f"{number(row['speedup'], 2)}x" if row["spread"] is not None and row["spread"] < STEADY_SPREAD else None,
            percent(row["spread"]),
            row["num_rounds"],
        )
        for row in seconds
    ]
    return section(
        "ONNX on the devices (Tables 6 and 7)",
        paragraph("Accuracy of the last measured global model on each device's validation share, by engine."),
        accuracy_table,
        paragraph(
            "Seconds over the validation share, median of the rounds; speed-up is PyTorch's time over ONNX Runtime's in float32, spread "
            f"its interquartile range over median. No speed-up where fewer than {STEADY_ROUNDS} rounds were measured, or where they differ "
            "by more than half."
        ),
        table(("device", "served", *engines, "speed-up", "spread", "rounds"), rows),
    )


def _device(node: str) -> str:
    return "server" if node == SERVER else node
