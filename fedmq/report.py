"""`fedmq report`: a run, or several side by side, as one self-contained HTML page.

Its figures and tables are the thesis's: Figures 2 and 4 to 7, Tables 3, 4, 6 and 7, from these runs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from federation.errors import DataError, SettingsError
from fedmq.console import JsonOption, out, print_json, sentences
from fedmq.options import CommandEnvironment, command_environment
from fedmq.report_onnx import accuracy_rows, onnx_section, seconds_rows
from fedmq.report_page import figure, number, page, paragraph, percent, section, table
from fedmq.run_data import RunData, fetch_run, read_run

MAX_MATRIX_CLASSES = 40


def report(
    runs: Annotated[
        list[str], typer.Argument(help="Folders that demo, run or simulate wrote, or names of runs on the broker.", metavar="RUN|OUT...")
    ],
    *,
    html: Annotated[Path | None, typer.Option("--html", help="The page to write; default report.html in the first folder.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one self-contained HTML page with the figures and tables of a run; of several, side by side."""
    with sentences():
        environment = command_environment()
        loaded = [load(name, environment) for name in runs]
        first = Path(runs[0])
        path = html or (first / "report.html" if first.is_dir() else Path(f"{loaded[0].summary['run']}.html"))
        tables = {"table_3": final_rows(loaded), "table_6": accuracy_rows(loaded[0]), "table_7": seconds_rows(loaded[0])}
        text = build(loaded, environment)
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"--html: {path} can't be written: {error.strerror}") from None
    if as_json:
        print_json({"html": str(path), **tables})
    else:
        out.print(f"wrote {path}", markup=False)


def load(name: str, environment: CommandEnvironment) -> RunData:
    """Return the run of a folder, or of that name on the broker.

    Raises:
        DataError, TransportError: it is at neither place.
    """
    if Path(name).is_dir():
        return read_run(Path(name))
    if "/" in name or "." in name:
        raise DataError(f"{name}: no such folder; name the folder of a run, as `fedmq demo` prints it")
    from federation.broker_address import BrokerAddress

    return fetch_run(BrokerAddress.from_environment(environment), name)


def build(runs: Sequence[RunData], environment: CommandEnvironment) -> str:
    """Return the page.

    Args:
        runs: at least one; the first is told in full, the others beside it.
        environment: where the data set of the first may be found, for who holds which class.
    """
    run = runs[0]
    summary = run.summary
    title = f"FedMQ: {summary['run']}" + (f" and {len(runs) - 1} more" if len(runs) > 1 else "")
    return page(
        title,
        [
            _facts(run),
            _final(runs),
            *_curves(runs),
            _data(run, environment),
            _classes(runs),
            _local(run),
            _confusion(run),
            onnx_section(run),
            _rounds(run),
        ],
    )


def final_rows(runs: Sequence[RunData]) -> list[dict[str, Any]]:
    """Return Table 3: the final scores of each run."""
    rows = []
    for run in runs:
        final, rounds = run.summary["final"], [entry for entry in run.summary["rounds"] if entry["accuracy"] is not None]
        shares = final["class_accuracy"]
        hardest = min(range(len(shares)), key=shares.__getitem__) if shares else None
        best = max(rounds, key=lambda entry: entry["accuracy"]) if rounds else None
        rows.append(
            {
                "run": run.summary["run"],
                "strategy": run.summary["strategy"],
                "accuracy": final["accuracy"],
                "f1_macro": final["f1_macro"],
                "f1_weighted": final["f1_weighted"],
                "auc": final.get("auc"),
                "hardest_class": run.class_names[hardest] if hardest is not None else None,
                "hardest_class_accuracy": shares[hardest] if hardest is not None else None,
                "first_accuracy": rounds[0]["accuracy"] if rounds else None,
                "best_accuracy": best["accuracy"] if best else None,
                "best_round": best["round_number"] if best else None,
            }
        )
    return rows


def _facts(run: RunData) -> str:
    summary = run.summary
    data = f"on {summary['data']}, " if summary["data"] else ""
    sizes = f"{summary['strategy']} {data}{summary['num_nodes']} nodes, {len(summary['rounds'])} rounds"
    seed = f", seed {summary['seed']}" if summary["seed"] is not None else ""
    last = run.last_known()
    told = paragraph(f"{last[0].word.capitalize()}: {last[1]}.") if last else ""
    digest = f'<p class="note">Digest of the final global model: <code>{summary["global_digest"]}</code></p>'
    return paragraph(sizes + seed + ".") + told + digest


def _final(runs: Sequence[RunData]) -> str:
    columns = (
        "run",
        "strategy",
        "accuracy",
        "F1 macro",
        "F1 weighted",
        "AUC",
        "hardest class",
        "its accuracy",
        "first round",
        "best round",
    )
    rows = [
        (
            row["run"],
            row["strategy"],
            *(percent(row[name]) for name in ("accuracy", "f1_macro", "f1_weighted")),
            number(row["auc"], 4),
            row["hardest_class"],
            percent(row["hardest_class_accuracy"]),
            percent(row["first_accuracy"]),
            f"{percent(row['best_accuracy'])} ({row['best_round']})",
        )
        for row in final_rows(runs)
    ]
    return section("Final scores on the global test set (Table 3)", table(columns, rows))


def _curves(runs: Sequence[RunData]) -> list[str]:
    from fedmq.figures import curves_figure
    from fedmq.report_figures import accuracy_by_run, to_svg

    sections = []
    for index, run in enumerate(runs):
        if not any(entry["accuracy"] is not None for entry in run.summary["rounds"]):
            continue
        label = f"Learning curves of {run.summary['run']}"
        caption = "Accuracy, F1 and loss of the global model after each round, and its final accuracy per class."
        sections.append(section(f"{label} (Figure {4 + min(index, 1)})", figure(to_svg(curves_figure(run.summary), label=label), caption)))
    if len(runs) > 1:
        svg = to_svg(accuracy_by_run(runs), label="Accuracy of the runs over rounds")
        sections.append(section("The runs side by side", figure(svg, "Accuracy on the test set after each round.")))
    return sections


def _data(run: RunData, environment: CommandEnvironment) -> str:
    title = "Who holds which class (Figures 2 and 7)"
    if run.settings is None:
        return section(title, paragraph("The broker does not know: each node keeps its images to itself.", is_note=True))
    from fedmq.report_data import partition_counts
    from fedmq.report_figures import to_svg

    try:
        counts, class_names = partition_counts(run.settings["settings"], environment)
    except (DataError, SettingsError) as error:
        return section(title, paragraph(f"The data set is not here, so its partition can't be shown: {error}", is_note=True))
    from fedmq.figures import partition_figure

    partition = run.settings["settings"]["partition"]
    how = f"{partition['scheme']} partition" + (f", alpha {partition['alpha']}" if partition["scheme"] in {"dirichlet", "quantity"} else "")
    svg = to_svg(partition_figure(counts, class_names, title=how), label="Examples per node and class")
    return section(title, figure(svg, "Training and validation examples of each node, by class."))


def _classes(runs: Sequence[RunData]) -> str:
    from fedmq.report_figures import classes_by_run, classes_over_rounds, to_svg

    if not runs[0].summary["final"]["class_accuracy"]:
        return ""
    parts = [figure(to_svg(classes_by_run(runs), label="Final accuracy per class"), "Recall of each class on the test set.")]
    heatmap = classes_over_rounds(runs[0])
    if heatmap is not None:
        svg = to_svg(heatmap, label="Accuracy per class over rounds")
        parts.append(figure(svg, f"{runs[0].summary['run']}: recall of each class after each round."))
    return section("Accuracy per class (Figure 6)", *parts)


def _local(run: RunData) -> str:
    from fedmq.report_figures import local_accuracy, to_svg

    heatmap = local_accuracy(run)
    if heatmap is None:
        return ""
    svg = to_svg(heatmap, label="Local accuracy per node and class")
    caption = "Recall of the last received global model on each node's own validation images; 0 also where a node has none of a class."
    by_round: dict[int, dict[str, float]] = defaultdict(dict)
    for point in run.of("train"):
        if "validation_accuracy" in point.fields:
            by_round[int(point.fields.get("round_number", 0))][point.tags["node"]] = float(point.fields["validation_accuracy"])
    nodes = sorted({node for entry in by_round.values() for node in entry})
    rows = [(number, *(percent(by_round[number].get(node)) for node in nodes)) for number in sorted(by_round)]
    return section("On the nodes' own images (Table 4)", figure(svg, caption), table(("round", *nodes), rows) if rows else "")


def _confusion(run: RunData) -> str:
    matrix = run.summary["final"]["confusion_matrix"]
    if not matrix or len(matrix) > MAX_MATRIX_CLASSES:
        return ""
    names = run.class_names
    rows = [(f"{index} {names[index]}", *counts) for index, counts in enumerate(matrix)]
    shades: list[list[float | None]] = [[None, *(count / max(sum(counts), 1) for count in counts)] for counts in matrix]
    columns = ("true class", *(str(index) for index in range(len(matrix))))
    caption = paragraph("Rows are true classes, columns what the final model took them for; shaded by the share of the row.", is_note=True)
    return section("Confusion matrix of the final model", table(columns, rows, shades=shades), caption)


def _rounds(run: RunData) -> str:
    from fedmq.report_figures import round_seconds, to_svg

    columns = (
        "round",
        "accuracy",
        "F1 macro",
        "F1 weighted",
        "AUC",
        "loss",
        "seconds",
        "accepted",
        "rejected",
        "discarded",
        "MB up",
        "MB down",
    )
    rows = [
        (
            entry["round_number"],
            *(percent(entry[name]) for name in ("accuracy", "f1_macro", "f1_weighted")),
            number(entry.get("auc"), 4),
            number(entry["loss"], 4),
            number(entry["seconds"], 2),
            *(entry[name] for name in ("accepted", "rejected", "discarded")),
            number(entry["bytes_up"] / 1e6, 2),
            number(entry["bytes_down"] / 1e6, 2),
        )
        for entry in run.summary["rounds"]
    ]
    seconds = round_seconds(run)
    drawn = (
        figure(to_svg(seconds, label="Seconds of each round by phase"), "Download and training are the slowest node's.") if seconds else ""
    )
    return section("Every round", drawn, table(columns, rows))
