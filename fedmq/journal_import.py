"""Writes a run's journal to a database: every point, what newer runs record besides, and the hourly means of its samples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aggregator.database import TOO_OLD, Database
from aggregator.database_address import DatabaseAddress
from federation.errors import DataError
from federation.metric_schema import MEASUREMENTS
from federation.metrics import Point
from fedmq.derived_points import History
from fedmq.hourly_means import HourlyMeans
from fedmq.run_data import read_points
from fedmq.run_source import read_class_names

BATCH_POINTS = 4000
"""About a megabyte: the size InfluxDB's manual recommends."""

SHARED_NAME = "demo"
"""What `fedmq demo` once called every run: in one database they would be one run of many rounds."""

_UNTOLD = frozenset({"device", "broker", "telemetry", "run", "outcome", "diagnostic"})
"""Measurements that say nothing of a run's course."""

SAMPLES = "samples"
ROUNDS = "rounds"


@dataclass(slots=True, kw_only=True)
class Imported:
    """What became of a journal."""

    num_points: int = 0
    """Of the journal, and derived from it."""
    num_hourly_means: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Reason -> points the database does not take."""
    num_skipped_lines: int = 0
    num_requests: int = 0
    renamed: dict[str, str] = field(default_factory=dict)
    """Run in the journal -> run in the database."""

    @property
    def num_written(self) -> int:
        """How many points are in the database."""
        return self.num_points - self.refused.total()


def import_journal(files: Sequence[Path], address: DatabaseAddress, *, name: str | None = None) -> Imported:
    """Write the points of one run's files, oldest first.

    Args:
        files: `metrics.jsonl`, and what was set aside of it.
        address: of the database.
        name: of the run there; None keeps the journal's, but for one that many runs had.

    Raises:
        DataError: there is no point in them.
        DatabaseUnavailableError: the database does not take points.
    """
    folder = files[-1].parent
    history = History(read_points(files, without=_UNTOLD), class_names=read_class_names(folder), dataset=_dataset_of(folder))
    imported = Imported(renamed=_names(history, name))
    means = HourlyMeans()
    database = Database(address)
    batches = {ROUNDS: _Batch(database, imported), SAMPLES: _Batch(database, imported)}
    num_read = 0
    try:
        for point in _renamed(map(history.current, read_points(files)), imported.renamed):
            num_read += 1
            means.add(point)
            batches[MEASUREMENTS[point.measurement].keep].add(point)
        for point in _renamed(history.summaries(), imported.renamed):
            batches[ROUNDS].add(point)
        for point in means.points():
            imported.num_hourly_means += 1
            batches[ROUNDS].add(point)
        for batch in batches.values():
            batch.write()
    finally:
        imported.num_requests = database.num_requests
        database.close()
    if num_read == 0:
        raise DataError(f"{files[-1]} holds no point of docs/metrics.md")
    imported.num_skipped_lines = sum(_count_lines(path) for path in files) - num_read
    return imported


class _Batch:
    """Points of one bucket, so that each batch is one request."""

    def __init__(self, database: Database, imported: Imported) -> None:
        self._database = database
        self._imported = imported
        self._points: list[Point] = []

    def add(self, point: Point) -> None:
        """Take in a point, and write once there are enough."""
        self._points.append(point)
        if len(self._points) == BATCH_POINTS:
            self.write()

    def write(self) -> None:
        """Write what is there."""
        if self._points:
            self._imported.refused.update(self._database.write(self._points))
            self._imported.num_points += len(self._points)
            self._points.clear()


def is_kept_as_means(imported: Imported) -> bool:
    """Return whether all that was refused is samples that are too old, whose hourly means are there."""
    return set(imported.refused) <= {TOO_OLD}


def _renamed(points: Iterable[Point], names: Mapping[str, str]) -> Iterator[Point]:
    for point in points:
        run = names.get(point.tags["run"])
        yield point if run is None else replace(point, tags={**point.tags, "run": run})


def _names(history: History, name: str | None) -> dict[str, str]:
    if name is not None:
        if len(history.runs) > 1:
            raise DataError(f"--as names one run, but the file holds {', '.join(sorted(history.runs))}")
        return dict.fromkeys(history.runs, name)
    began_ns = history.first_times().get(SHARED_NAME)
    if began_ns is None:
        return {}
    return {SHARED_NAME: f"{SHARED_NAME}-{datetime.fromtimestamp(began_ns / 1e9, UTC):%Y%m%d-%H%M%S}"}


def _dataset_of(folder: Path) -> str:
    try:
        described: Any = json.loads((folder / "settings.json").read_bytes())
        return str(described["settings"]["data"]["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
