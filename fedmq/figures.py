"""Figures of a run and of a partition, as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

DPI = 110


def draw_curves(summary: Mapping[str, Any], path: Path) -> None:
    """Draw `curves_figure` into a file."""
    curves_figure(summary).savefig(path, dpi=DPI)


def curves_figure(summary: Mapping[str, Any]) -> Figure:
    """Return accuracy, F1 and loss over rounds and the final accuracy per class: the four panels of the thesis's Figure 4."""
    rounds = [entry for entry in summary["rounds"] if entry["accuracy"] is not None]
    numbers = [entry["round_number"] for entry in rounds]
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    accuracy, f1, loss, classes = figure.subplots(2, 2).flatten()
    _curve(accuracy, "accuracy", numbers, {"accuracy": [entry["accuracy"] for entry in rounds]}, top=1.0)
    scores = {"macro": [entry["f1_macro"] for entry in rounds], "weighted": [entry["f1_weighted"] for entry in rounds]}
    _curve(f1, "F1 score", numbers, scores, top=1.0)
    _curve(loss, "loss (cross-entropy)", numbers, {"loss": [entry["loss"] for entry in rounds]})
    shares = summary["final"]["class_accuracy"]
    # A run that was stopped before its first evaluation has classes, but no shares of them.
    names = (summary.get("class_names") or [str(index) for index in range(len(shares))])[: len(shares)]
    bars = classes.barh([_shortened(name) for name in names], shares)
    classes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    classes.set(title="final accuracy per class", xlim=(0, 1.12))
    classes.tick_params(axis="y", labelsize=8)
    classes.invert_yaxis()
    figure.suptitle(f"{summary['run']}: {summary['strategy']} on {summary['data']}, {summary['num_nodes']} nodes")
    return figure


def draw_partition(counts: NDArray[np.int64], class_names: Sequence[str], path: Path, *, title: str) -> None:
    """Draw `partition_figure` into a file."""
    partition_figure(counts, class_names, title=title).savefig(path, dpi=DPI)


def partition_figure(counts: NDArray[np.int64], class_names: Sequence[str], *, title: str) -> Figure:
    """Return which node holds how much of which class, as a heatmap and as stacked bars.

    Args:
        counts: nodes x classes, examples.
        class_names: of the columns.
        title: of the whole figure.
    """
    num_nodes, num_classes = counts.shape
    figure = Figure(figsize=(4 + 0.7 * num_classes, 4 + 0.35 * num_nodes), layout="constrained")
    heatmap, bars = figure.subplots(2, 1, gridspec_kw={"height_ratios": [max(2, num_nodes), 4]})
    image = heatmap.imshow(counts, aspect="auto", cmap="Blues")
    heatmap.set(title="examples per node and class", yticks=range(num_nodes), yticklabels=[f"node-{index}" for index in range(num_nodes)])
    heatmap.set_xticks(range(num_classes), [_shortened(name) for name in class_names], rotation=30, ha="right", fontsize=8)
    for (row, column), count in np.ndenumerate(counts):
        heatmap.text(column, row, str(count), ha="center", va="center", fontsize=8, color="white" if count > counts.max() / 2 else "black")
    figure.colorbar(image, ax=heatmap)
    bottom = np.zeros(num_nodes)
    for column, name in enumerate(class_names):
        bars.bar([f"node-{index}" for index in range(num_nodes)], counts[:, column], bottom=bottom, label=_shortened(name))
        bottom += counts[:, column]
    bars.set(title="examples per node")
    bars.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(title)
    return figure


def _curve(axes: Axes, title: str, numbers: Sequence[int], series: Mapping[str, Sequence[float]], *, top: float | None = None) -> None:
    for label, values in series.items():
        axes.plot(numbers, values, marker="o", markersize=3, label=label)
    axes.set(title=title, xlabel="round", ylim=(0, top))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=True, alpha=0.3)
    if len(series) > 1:
        axes.legend()


def _shortened(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"
