"""The report's own figures: what the thesis draws beyond a run's curves."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedmq.run_data import RunData

PHASES = ("download", "train", "upload", "aggregate", "evaluate")
MAX_ANNOTATED_CELLS = 400
"""A heatmap of more cells would print figures over each other."""

WRAP_CHARACTERS = 18


def to_svg(figure: Figure, *, label: str) -> str:
    """Return a figure as SVG to stand inside an HTML page; `label` is read aloud in its place."""
    buffer = io.StringIO()
    # The same figure gives the same bytes: no date, and identifiers from a fixed seed.
    with mpl.rc_context({"svg.hashsalt": label, "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label, quote=True)}"', 1)


def classes_by_run(runs: Sequence[RunData]) -> Figure:
    """Return the final accuracy per class of several runs side by side: the thesis's Figure 6."""
    names = runs[0].class_names
    # Runs on other data have other classes: they have no place in these groups.
    runs = [run for run in runs if len(run.summary["final"]["class_accuracy"]) == len(names)]
    figure = Figure(figsize=(max(8.0, 0.9 * len(names)), 4.2), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(runs)
    places = np.arange(len(names))
    for index, run in enumerate(runs):
        shares = run.summary["final"]["class_accuracy"]
        label = f"{run.summary['run']} ({run.summary['strategy']})"
        bars = axes.bar(places + (index - (len(runs) - 1) / 2) * width, shares, width, label=label)
        if len(runs) == 1:
            axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
    axes.set(ylim=(0, 1.1), ylabel="accuracy")
    axes.set_xticks(places, [wrapped(name) for name in names], fontsize=8)
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def classes_over_rounds(run: RunData) -> Figure | None:
    """Return the accuracy per class after each round as a heatmap; None without points."""
    cells = {(int(p.tags["class"]), int(p.fields["round_number"])): float(p.fields["value"]) for p in run.of("class_accuracy")}
    if not cells:
        return None
    numbers = sorted({number for _, number in cells})
    rows = sorted({index for index, _ in cells})
    values = np.array([[cells.get((row, number), np.nan) for number in numbers] for row in rows])
    names = run.class_names
    return _heatmap(values, [names[row] if row < len(names) else str(row) for row in rows], [str(number) for number in numbers], "round")


def local_accuracy(run: RunData) -> Figure | None:
    """Return what the last received global model knows of each node's classes: nodes x classes; None without points."""
    last: dict[tuple[str, int], float] = {}
    for point in run.of("local_class_accuracy"):
        last[str(point.tags["node"]), int(point.tags["class"])] = float(point.fields["value"])
    if not last:
        return None
    nodes = sorted({node for node, _ in last})
    names = run.class_names
    columns = sorted({index for _, index in last})
    values = np.array([[last.get((node, index), np.nan) for index in columns] for node in nodes])
    return _heatmap(values, nodes, [wrapped(names[index]) if index < len(names) else str(index) for index in columns], "class")


def round_seconds(run: RunData) -> Figure | None:
    """Return where each round's seconds went, stacked; None without points."""
    points = list(run.of("round"))
    if not points:
        return None
    numbers = [int(point.fields["round_number"]) for point in points]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots()
    bottom = np.zeros(len(points))
    for phase in PHASES:
        seconds = np.array([float(point.fields.get(f"{phase}_seconds", 0.0)) for point in points])
        axes.bar(numbers, seconds, bottom=bottom, label=phase)
        bottom += seconds
    axes.set(xlabel="round", ylabel="seconds")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.grid(visible=True, axis="y", alpha=0.3)
    return figure


def accuracy_by_run(runs: Sequence[RunData]) -> Figure:
    """Return the accuracy over rounds of several runs."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        rounds: list[Mapping[str, Any]] = [entry for entry in run.summary["rounds"] if entry["accuracy"] is not None]
        label = f"{run.summary['run']} ({run.summary['strategy']})"
        axes.plot(
            [entry["round_number"] for entry in rounds], [entry["accuracy"] for entry in rounds], marker="o", markersize=3, label=label
        )
    axes.set(xlabel="round", ylabel="accuracy", ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def wrapped(name: str) -> str:
    """Return a class name broken into short lines at its spaces."""
    lines = [""]
    for word in name.replace("/", "/ ").split():
        if lines[-1] and len(lines[-1]) + len(word) >= WRAP_CHARACTERS:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(line[: 2 * WRAP_CHARACTERS] for line in lines[:3])


def _ink_on(share: float) -> str:
    """Return the text colour that is legible on the colour map's dark ends."""
    return "white" if share < 0.15 or share > 0.9 else "black"


def _heatmap(values: Any, rows: Sequence[str], columns: Sequence[str], x_label: str) -> Figure:
    height = 1.4 + 0.42 * len(rows)
    figure = Figure(figsize=(min(14.0, max(8.0, 2.5 + 0.62 * len(columns))), height), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", cmap="RdYlGn", vmin=0, vmax=1)
    axes.set_yticks(range(len(rows)), [row if len(row) <= 30 else f"{row[:29]}…" for row in rows], fontsize=8)
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.set_xlabel(x_label)
    if values.size <= MAX_ANNOTATED_CELLS:
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=_ink_on(value))
    figure.colorbar(image, ax=axes, label="accuracy")
    return figure
