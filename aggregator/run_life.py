"""Which life of a run this is, and when it began: kept in the run's folder, so that a resumed run keeps both.

A folder that is used anew begins the next life of its run: the dashboards show the last one alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from aggregator.checkpoint import write_atomically

LIFE_FILE = ".life.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One life of a run."""

    number: int
    """From 1."""
    started_ms: int
    """Milliseconds since 1970."""
    is_new: bool
    """It begins now."""
    is_over: bool = False
    """Its end is recorded already: a run that is resumed after its last round ends at once."""


def begin_life(out_dir: Path, *, is_resumed: bool, first_point_ns: int | None, now_ns: int) -> Life:
    """Return the life that begins, or goes on, and keep it in the folder.

    Args:
        out_dir: the run's folder.
        is_resumed: an earlier process of this run may have been here.
        first_point_ns: of the run's journal, for a run that is older than this file; None for an empty one.
        now_ns: the clock.

    Raises:
        OSError: the folder can't be written.
    """
    path = out_dir / LIFE_FILE
    number, started_ms = _read(path)
    if is_resumed and started_ms is not None:
        return Life(number=number, started_ms=started_ms, is_new=False)
    began_ms = (first_point_ns if is_resumed and first_point_ns else now_ns) // 10**6
    life = Life(number=number + 1, started_ms=began_ms, is_new=True)
    write_atomically(path, json.dumps({"life": life.number, "started_ms": life.started_ms}).encode())
    return life


def _read(path: Path) -> tuple[int, int | None]:
    """Return the last life's number and beginning; (0, None) before the first."""
    try:
        stored = json.loads(path.read_bytes())
        number, started_ms = stored["life"], stored["started_ms"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0, None
    return (number, started_ms) if type(number) is int and type(started_ms) is int else (0, None)
