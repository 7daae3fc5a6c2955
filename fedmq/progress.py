"""Live progress of a run: what it does now, and a line for each round that is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from fedmq.console import err

STARTING = "starting: the processes load, then each node its images"

IDLE = ("waiting", "paused")
"""How a line begins that says why nothing happens: a log is told it, too."""


class RunProgress:
    """One line that says what the run does, on stderr; a context manager.

    On a terminal the line is kept up to date in place; elsewhere, in a log, each round's end and each wait is a line of its own.

    Args:
        out_dir: the run's folder: what came of its rounds is read from there.
        num_rounds: how many rounds the run has.
        is_shown: False keeps silent, for `--json`.
        live: says what the run does now; None, or while it returns None, the rounds' ends are all that is told.
    """

    def __init__(self, out_dir: Path, num_rounds: int, *, is_shown: bool, live: Callable[[], str | None] | None = None) -> None:
        self._summary = out_dir / "summary.json"
        self._num_rounds = num_rounds
        self._is_shown = is_shown
        self._live = live
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False, table_column=Column(ratio=1)), TimeElapsedColumn())
        self._progress = Progress(*columns, console=err, disable=not (is_shown and err.is_terminal), transient=True)
        self._task: TaskID | None = None
        self._num_seen = 0
        self._seen_at: tuple[int, int] | None = None
        self._text = STARTING
        self._told = ""

    def __enter__(self) -> Self:
        self._num_seen = len(self._rounds())
        self._progress.start()
        self._task = self._progress.add_task(self._text, total=None)
        if self._is_shown and not err.is_terminal:
            err.print(self._text, markup=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def update(self) -> None:
        """Show what has happened since the last call."""
        rounds = self._rounds()
        for entry in rounds[self._num_seen :]:
            accuracy = "-" if entry["accuracy"] is None else f"{entry['accuracy']:.4f}"
            self._text = f"round {entry['round_number']} of {self._num_rounds}: accuracy {accuracy}, {entry['seconds']:.1f} s"
            if self._is_shown and not err.is_terminal:
                err.print(self._text, markup=False)
        self._num_seen = max(self._num_seen, len(rounds))
        text = (self._live() if self._live is not None else None) or self._text
        if self._task is not None:
            self._progress.update(self._task, description=text)
        if self._is_shown and not err.is_terminal and text.startswith(IDLE) and text != self._told:
            err.print(text, markup=False, soft_wrap=True)
            self._told = text

    def _rounds(self) -> list[dict[str, Any]]:
        try:
            status = self._summary.stat()
            if (status.st_mtime_ns, status.st_size) == self._seen_at:
                return []
            rounds: list[dict[str, Any]] = read_summary(self._summary).get("rounds", [])
        except FileNotFoundError:
            return []
        self._seen_at = (status.st_mtime_ns, status.st_size)
        return rounds


def read_summary(path: Path) -> dict[str, Any]:
    """Return a run's summary."""
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return summary
