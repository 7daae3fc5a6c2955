"""How the command line speaks: tables and progress for people, JSON for programs, one sentence per error.

Exit status of every command: 0 done, 1 it could not be done, 2 the command line or the settings are wrong,
3 it was interrupted and can be continued.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from federation.errors import FedMQError, SettingsError
from federation.plain_text import printable

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 3

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead of tables.")]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def program() -> str:
    """Return what to type for `fedmq` here: in a clone, whose environment is on nobody's PATH, its script."""
    return "fedmq" if shutil.which("fedmq") else "scripts/fedmq"


def print_json(value: object) -> None:
    """Print a JSON document."""
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, to: Console = out, spare: Sequence[str] = ()
) -> None:
    """Print a table.

    Args:
        title: above it.
        columns: headings.
        rows: cells; None is left empty.
        to: where.
        spare: columns that are left out where the terminal is too narrow for all, the first first: digits are never broken.
    """
    texts = [["" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(columns, *texts, strict=True)]
    shown = list(range(len(columns)))
    for name in spare:
        # A space on each side of a cell, one between columns, and one at each edge.
        if sum(widths[index] + 3 for index in shown) + 1 <= to.width:
            break
        shown.remove(columns.index(name))
    table = Table(box=SIMPLE_HEAD)
    for index in shown:
        table.add_column(columns[index], justify="left" if index == 0 else "right", overflow="fold")
    for row in texts:
        table.add_row(*(row[index] for index in shown))
    to.print(title, style="italic", markup=False)
    to.print(table)


@contextmanager
def sentences() -> Iterator[None]:
    """Turn FedMQ's errors into one message on stderr and an exit status."""
    try:
        yield
    except SettingsError as error:
        _print_error(str(error))
        raise typer.Exit(EXIT_USAGE) from None
    except FedMQError as error:
        _print_error(str(error))
        raise typer.Exit(EXIT_FAILED) from None
    except OSError as error:
        # A file of the user's that can't be read or written, or a full disk: no fault of the program.
        _print_error(f"{error.filename or 'input or output'}: {error.strerror or error}")
        raise typer.Exit(EXIT_FAILED) from None
    except KeyboardInterrupt:
        err.print("interrupted", style="red")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _print_error(text: str) -> None:
    # Not wrapped: paths and commands in it are there to be copied.
    err.print(text, style="red", markup=False, soft_wrap=True)


ROUND_COLUMNS = ("round", "accuracy", "F1 macro", "F1 wtd", "AUC", "loss", "a/r/d", "s", "MB up", "MB down")
"""Headings of `round_row`; a/r/d counts accepted, rejected and discarded updates."""

SPARE_ROUND_COLUMNS = ("F1 wtd", "MB down", "MB up", "F1 macro", "a/r/d")
"""Which of them a narrow terminal does without."""


def round_row(entry: Mapping[str, Any]) -> list[str]:
    """Return a summary's round as table cells."""
    values = [entry.get(name) for name in ("accuracy", "f1_macro", "f1_weighted", "auc", "loss")]
    scores = ["-" if value is None else f"{value:.4f}" for value in values]
    counts = f"{entry['accepted']}/{entry['rejected']}/{entry['discarded']}"
    return [
        str(entry["round_number"]),
        *scores,
        counts,
        f"{entry['seconds']:.2f}",
        megabytes(entry["bytes_up"]),
        megabytes(entry["bytes_down"]),
    ]


def megabytes(num_bytes: float) -> str:
    """Return a size in megabytes, two decimals."""
    return f"{num_bytes / 1e6:.2f}"


def print_summary(summary: Mapping[str, Any], *, to: Console = out) -> None:
    """Print a run's rounds and final scores."""
    title = f"{summary['run']}: {summary['strategy']} on {summary['data']}, {summary['num_nodes']} nodes, seed {summary['seed']}"
    print_table(title, ROUND_COLUMNS, [round_row(entry) for entry in summary["rounds"]], to=to, spare=SPARE_ROUND_COLUMNS)
    to.print("a/r/d: updates accepted, rejected, discarded", style="dim")
    final = summary["final"]
    if final["accuracy"] is not None:
        names = summary["class_names"] or [f"class {index}" for index in range(len(final["class_accuracy"]))]
        rows = [(name, f"{accuracy:.4f}") for name, accuracy in zip(names, final["class_accuracy"], strict=True)]
        print_table("final model, per class", ("class", "accuracy"), rows, to=to)
        auc = f", AUC {final['auc']:.4f}" if final.get("auc") is not None else ""
        to.print(
            f"final accuracy [bold]{final['accuracy']:.4f}[/bold], F1 macro {final['f1_macro']:.4f}, F1 weighted {final['f1_weighted']:.4f}"
            + auc
        )
    to.print(f"global_digest {summary['global_digest']}")
