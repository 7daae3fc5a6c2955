"""How the command line speaks: tables and progress for people, JSON for programs, one sentence per error.

Exit status of every command: 0 done, 1 it could not be done, 2 the command line or the settings are wrong,
3 it was interrupted and can be continued.
"""

from __future__ import annotations

import json
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


def print_json(value: object) -> None:
    """Print a JSON document."""
    sys.stdout.write(json.dumps(value, indent=1, default=str) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right", overflow="fold")
    for row in rows:
        table.add_row(*("" if cell is None else printable(str(cell)) for cell in row))
    out.print(table)


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


def print_summary(summary: Mapping[str, Any]) -> None:
    """Print a run's rounds and final scores."""
    title = f"{summary['run']}: {summary['strategy']} on {summary['data']}, {summary['num_nodes']} nodes, seed {summary['seed']}"
    print_table(title, ROUND_COLUMNS, [round_row(entry) for entry in summary["rounds"]])
    out.print("a/r/d: updates accepted, rejected, discarded", style="dim")
    final = summary["final"]
    if final["accuracy"] is not None:
        names = summary["class_names"] or [f"class {index}" for index in range(len(final["class_accuracy"]))]
        rows = [(name, f"{accuracy:.4f}") for name, accuracy in zip(names, final["class_accuracy"], strict=True)]
        print_table("final model, per class", ("class", "accuracy"), rows)
        auc = f", AUC {final['auc']:.4f}" if final.get("auc") is not None else ""
        out.print(
            f"final accuracy [bold]{final['accuracy']:.4f}[/bold], F1 macro {final['f1_macro']:.4f}, F1 weighted {final['f1_weighted']:.4f}"
            + auc
        )
    out.print(f"global_digest {summary['global_digest']}")
