"""Live progress of a run: follows the summary that the aggregator rewrites after every round."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fedmq.console import err


class RunProgress:
    """A progress bar with the last round's scores, on stderr; a context manager.

    Args:
        out_dir: the run's folder.
        num_rounds: how many rounds the run has.
        is_shown: False keeps silent, for `--json`.
    """

    def __init__(self, out_dir: Path, num_rounds: int, *, is_shown: bool) -> None:
        self._summary = out_dir / "summary.json"
        self._num_rounds = num_rounds
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=err, disable=not is_shown)
        self._task: TaskID | None = None
        self._num_seen = 0

    def __enter__(self) -> Self:
        self._progress.start()
        self._task = self._progress.add_task("round 0: waiting for nodes", total=self._num_rounds)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def update(self) -> None:
        """Show what has happened since the last call."""
        rounds = read_summary(self._summary).get("rounds", []) if self._summary.exists() else []
        if self._task is None or len(rounds) == self._num_seen:
            return
        self._num_seen = len(rounds)
        last = rounds[-1]
        accuracy = "-" if last["accuracy"] is None else f"{last['accuracy']:.4f}"
        text = f"round {last['round_number']}: accuracy {accuracy}, {last['seconds']:.1f} s"
        self._progress.update(self._task, completed=last["round_number"], description=text)


def read_summary(path: Path) -> dict[str, Any]:
    """Return a run's summary."""
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return summary
