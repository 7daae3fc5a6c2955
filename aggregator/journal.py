"""A run's metrics.jsonl: every point once, in order of arrival; also the queue the database is filled from.

What is in the file is safe: the broker is told so (PUBACK), and the database may be down for as long as the disk
lasts. Beyond `max_bytes` the newest samples are dropped first, then, at twice that, everything new: the oldest
are the last to go. A file that the database has whole is set aside at half of it, so a long run never gets there.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path

from federation.errors import MessageError
from federation.metric_schema import MEASUREMENTS
from federation.metrics import Point, parse_line

logger = logging.getLogger("aggregator")

MAX_JOURNAL_BYTES = 1 << 30
"""About four million points: 50 nodes sampled every 5 s for four and a half days without a database."""

NUM_IDENTITIES = 65_536
"""A restarted aggregator is sent again what it had not acknowledged: 64 reports in flight of 1,000 points each."""

SCAN_BYTES = 1 << 20
"""Read at a time in search of the last whole line."""

TAIL_BYTES = 16 << 20
"""Where those points stand at the latest: 256 bytes each."""


class Journal:
    """Appends points to a file, each once, and reads them back in order. Any thread may call any method.

    Args:
        path: `metrics.jsonl`; the file set aside goes beside it as `metrics.1.jsonl`.
        max_bytes: see above.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_JOURNAL_BYTES) -> None:
        self.path = path
        self.previous_path = path.with_suffix(f".1{path.suffix}")
        self.cursor_path = path.with_name(".metrics.cursor")
        """Where the reader keeps how far it is."""
        self.num_recorded = 0
        self.num_dropped = 0
        self.last_summary: Point | None = None
        """The newest `run_summary` that an earlier process recorded."""
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._identities: OrderedDict[int, None] = OrderedDict()
        self._size = 0
        self._torn_at: int | None = None
        """Where what a failing disk took of refused points begins."""
        self._generation = 0
        self.arrived = threading.Event()
        """Set by each append."""

    def open(self, *, is_resumed: bool) -> None:
        """Start the file anew, or go on after its last whole line."""
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._identities.clear()
            if not is_resumed:
                self.path.unlink(missing_ok=True)
                self.previous_path.unlink(missing_ok=True)
                self.cursor_path.unlink(missing_ok=True)
            self.path.touch()
            self._size = self._cut_torn_line()
            self._remember_tail()

    def first_time_ns(self) -> int | None:
        """Return the time of the oldest point that is left; None before the first."""
        for path in (self.previous_path, self.path):
            with suppress(OSError, MessageError), path.open("rb") as file:
                return parse_line(file.readline()).time_ns
        return None

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._size

    @property
    def generation(self) -> int:
        """How often the file was set aside by this process: an offset holds within one generation."""
        return self._generation

    def append(self, points: Sequence[Point]) -> int:
        """Record points that are not there yet; return how many are new.

        Raises:
            OSError: the disk is full or gone; nothing of these points counts as recorded.
        """
        with self._lock:
            fresh: dict[int, Point] = {}
            for point in points:
                identity = hash(point.identity)
                if identity not in self._identities and self._has_room(point):
                    fresh[identity] = point
            if not fresh:
                return 0
            data = "".join(point.to_line() for point in fresh.values()).encode()
            self._write(data)
            for identity in fresh:
                self._identities[identity] = None
            while len(self._identities) > NUM_IDENTITIES:
                self._identities.popitem(last=False)
            self.num_recorded += len(fresh)
        self.arrived.set()
        return len(fresh)

    def holds(self, point: Point) -> bool:
        """Return whether a point of this identity is among the newest."""
        with self._lock:
            return hash(point.identity) in self._identities

    def read(self, offset: int, max_bytes: int) -> tuple[list[Point], int]:
        """Return the points of whole lines from `offset`, and the offset after them."""
        # With the lock: what a write that fails leaves for a moment is no point. It is a page cache's read of a megabyte.
        with self._lock, self.path.open("rb") as file:
            if self._torn_at is not None:
                max_bytes = max(0, min(max_bytes, self._torn_at - offset))
            file.seek(offset)
            data = file.read(max_bytes)
        end = data.rfind(b"\n") + 1
        points = []
        for line in data[:end].splitlines():
            try:
                points.append(parse_line(line))
            except MessageError as error:
                logger.warning("journal=%s line=skipped reason=%r", self.path.name, str(error))
        return points, offset + end

    def set_aside(self, offset: int) -> bool:
        """Begin a new file if this one is large and read to its end; return whether it was done."""
        with self._lock:
            if offset != self._size or self._size <= self._max_bytes // 2:
                return False
            # First, and without needing room: a crash in between writes the old file over itself, where a place kept for the
            # old one would skip what is new.
            self.cursor_path.unlink(missing_ok=True)
            self.path.replace(self.previous_path)
            self._size = 0
            with suppress(OSError):  # a disk without room for a name: the next append makes it
                self.path.touch()
            self._generation += 1
            return True

    def _has_room(self, point: Point) -> bool:
        is_sample = MEASUREMENTS[point.measurement].keep == "samples"
        if self._size < self._max_bytes * (1 if is_sample else 2):
            return True
        if self.num_dropped % 10_000 == 0:
            logger.error("journal=full bytes=%d; new points are dropped until the database is back", self._size)
        self.num_dropped += 1
        return False

    def _write(self, data: bytes) -> None:
        # Unbuffered: a buffer that a full disk has refused is written once more as its file is closed.
        with self.path.open("ab", buffering=0) as file:
            self._cut_refused(file)
            # Its end, not `_size`: a zombie on the same disk may append, too.
            self._torn_at = file.seek(0, os.SEEK_END)
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                # A disk that fails here, too, keeps half a line: it is cut off before the next one, and not read.
                with suppress(OSError):
                    self._cut_refused(file)
                raise
        self._torn_at = None
        self._size += len(data)

    def _cut_refused(self, file: FileIO) -> None:
        if self._torn_at is not None:
            file.truncate(self._torn_at)
            self._torn_at = None

    def _cut_torn_line(self) -> int:
        """Drop what a crash left after the last newline, a power cut's zeros too; return the size."""
        size = self.path.stat().st_size
        start, whole = size, 0
        with self.path.open("rb") as file:
            while start and not whole:
                end, start = start, max(0, start - SCAN_BYTES)
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                whole = start + newline + 1 if newline >= 0 else 0
        if whole != size:
            os.truncate(self.path, whole)
        return whole

    def _remember_tail(self) -> None:
        # Of the file set aside, too: a new one may have nothing of the last rounds.
        for path in (self.previous_path, self.path):
            with suppress(FileNotFoundError):
                self._remember(path)
        while len(self._identities) > NUM_IDENTITIES:
            self._identities.popitem(last=False)

    def _remember(self, path: Path) -> None:
        with path.open("rb") as file:
            if (start := path.stat().st_size - TAIL_BYTES) > 0:
                file.seek(start)
                file.readline()
            for line in file:
                try:
                    point = parse_line(line)
                except MessageError:
                    continue
                self._identities[hash(point.identity)] = None
                if point.measurement == "run_summary":
                    self.last_summary = point
