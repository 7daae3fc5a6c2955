"""Carries a run's points from its journal to the database, on a thread of its own, for as long as it takes."""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path
from random import SystemRandom

from aggregator.checkpoint import write_atomically
from aggregator.database import Database, DatabaseUnavailableError
from aggregator.journal import Journal
from federation.metrics import Point

logger = logging.getLogger("aggregator")

BATCH_BYTES = 1 << 20
"""About 4,000 points: the size InfluxDB's manual recommends."""

GATHER_SECONDS = 0.5
"""Points of one moment leave together."""

REQUEST_SECONDS = 15.0
"""Longest write to the database that a stopping forwarder sits out."""

IDLE_SECONDS = 5.0
FIRST_BACK_OFF_SECONDS = 1.0
LONGEST_BACK_OFF_SECONDS = 30.0


class Forwarder:
    """Writes what the journal holds to the database, in order, each batch until it is in.

    The place reached is kept in a file beside the journal, after each batch: a crash in between writes that batch
    again, over itself.

    Args:
        journal: opened.
        database: used by the forwarder's thread alone, and closed by it.
    """

    def __init__(self, journal: Journal, database: Database) -> None:
        self._journal = journal
        self._database = database
        self._cursor = Cursor(journal.cursor_path)
        self._stopping = threading.Event()
        self._give_up_at = float("inf")
        self._thread = threading.Thread(target=self._run, name="forwarder", daemon=True)
        self.num_written = 0
        self.num_refused = 0
        self.problem = ""
        """Why the database takes no points now; empty while it does."""

    @property
    def num_waiting_bytes(self) -> int:
        """Bytes of the journal that the database does not have yet."""
        return max(0, self._journal.size - self._cursor.offset)

    def start(self) -> None:
        """Begin where an earlier process left off."""
        self._cursor.load(self._journal.size)
        self._thread.start()

    def stop(self, timeout_seconds: float) -> bool:
        """Write what is left, for so long at most; return whether all of it is in."""
        self._give_up_at = time.monotonic() + timeout_seconds
        self._stopping.set()
        self._journal.arrived.set()
        # A request under way may take some seconds more, where there are some.
        self._thread.join(timeout_seconds + min(timeout_seconds, REQUEST_SECONDS))
        return self.num_waiting_bytes == 0

    def _run(self) -> None:
        num_failures = 0
        while True:
            self._journal.arrived.clear()
            points, offset = self._read()
            is_stopping = self._stopping.is_set()
            if offset == self._cursor.offset:
                if is_stopping:
                    break
                if self._set_aside(offset):
                    self._cursor.move(0)
                self._journal.arrived.wait(IDLE_SECONDS)
                self._stopping.wait(GATHER_SECONDS)
                continue
            try:
                self.num_refused += sum(self._database.write(points).values())
            except DatabaseUnavailableError as error:
                self._complain(str(error))
                num_failures += 1
                seconds = SystemRandom().uniform(0.5, 1.0) * min(LONGEST_BACK_OFF_SECONDS, FIRST_BACK_OFF_SECONDS * 2**num_failures)
                if is_stopping and time.monotonic() + 1.0 >= self._give_up_at:
                    logger.warning("database=unfinished waiting_bytes=%d; `fedmq metrics import` writes them", self.num_waiting_bytes)
                    break
                if is_stopping:
                    time.sleep(1.0)
                else:
                    self._stopping.wait(seconds)
                continue
            if self.problem:
                logger.info("database=back waiting_bytes=%d", self.num_waiting_bytes)
            num_failures, self.problem = 0, ""
            self.num_written += len(points)
            self._cursor.move(offset)
        self._database.close()

    def _read(self) -> tuple[list[Point], int]:
        """Return the next points and the place after them; a disk that fails has none for now."""
        try:
            return self._journal.read(self._cursor.offset, BATCH_BYTES)
        except OSError as error:
            logger.error("journal=unreadable reason=%r; points wait in it", str(error))  # noqa: TRY400 - expected, no trace
            return [], self._cursor.offset

    def _set_aside(self, offset: int) -> bool:
        try:
            return self._journal.set_aside(offset)
        except OSError as error:
            logger.error("journal=unwritable reason=%r; it goes on growing", str(error))  # noqa: TRY400 - expected, no trace
            return False

    def _complain(self, problem: str) -> None:
        if not self.problem:
            logger.warning("database=down reason=%r; points wait in %s", problem, self._journal.path.name)
        self.problem = problem


class Cursor:
    """How far a journal has been read, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_unstored = False
        self.offset = 0

    def load(self, journal_bytes: int) -> None:
        """Take up the stored place; from the start where there is none, or the journal is another one."""
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))["offset"]
        except (OSError, ValueError, KeyError, TypeError):
            stored = 0
        self.offset = stored if type(stored) is int and 0 <= stored <= journal_bytes else 0

    def move(self, offset: int) -> None:
        """Store a new place; one that a full disk does not take is stored with the next: a crash before writes a little over itself."""
        self.offset = offset
        try:
            write_atomically(self._path, json.dumps({"offset": offset}).encode())
        except OSError as error:
            if not self._is_unstored:
                logger.error("cursor=unwritable reason=%r; free some disk space", str(error))  # noqa: TRY400 - expected, no trace
            self._is_unstored = True
        else:
            self._is_unstored = False
