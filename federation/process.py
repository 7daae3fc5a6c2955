"""What the processes share: a bounded inbox, background workers, logging, a heartbeat.

Beside `mqtt` the only module with threads: the network thread and the worker put items in, the main thread
takes them out, so a service and its machine never see two things at once.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from federation.clock import Clock
from federation.ending import Ending
from federation.plain_text import LineFormatter

logger = logging.getLogger(__name__)

INBOX_SIZE = 64
"""Items waiting at most: 16 MiB of chunks. A full inbox makes the network thread wait, and so the broker."""

MAX_WAIT_SECONDS = 1.0
"""How long it may go unnoticed that the process must end."""

HEARTBEAT_SECONDS = 5.0
"""How often a turning loop touches its heartbeat file; a health check calls 60 s without one dead."""

SYSTEM_CLOCK = Clock(monotonic=time.monotonic, time_ns=time.time_ns)


class Service(Protocol):
    """What a process runs."""

    @property
    def wake_at(self) -> float | None:
        """When the next timed event is due, on the monotonic clock."""
        ...

    @property
    def stopped(self) -> object | None:
        """Why the service has ended; None while it goes on."""
        ...

    def take(self, item: Any) -> None:
        """Take in one event."""
        ...


class Process:
    """Feeds one service from an inbox until it has stopped or the process must end.

    Args:
        ending: of the process; one of its own by default.
        heartbeat: touched while the loop turns; None for none.
    """

    def __init__(self, ending: Ending | None = None, *, heartbeat: Path | None = None) -> None:
        self._ending = ending or Ending(status=0)
        self._inbox: queue.Queue[Any] = queue.Queue(INBOX_SIZE)
        self._jobs: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._side_jobs: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._heartbeat = heartbeat
        self._next_beat = 0.0
        self._is_mute = False
        self._has_stopped = False
        self.num_failed_jobs = 0
        """Jobs of `aside` that raised: each is a bug, none costs a round."""

    def put(self, item: object) -> None:
        """Hand the service an item, from any thread; waits while the inbox is full."""
        while not self._has_stopped:
            try:
                self._inbox.put(item, timeout=MAX_WAIT_SECONDS)
            except queue.Full:
                continue
            return

    def background(self, job: Callable[[], Any]) -> None:
        """Run a job on the worker thread, after those before it; the service takes what it returns. One that raises ends the process."""
        self._jobs.put(job)

    def aside(self, job: Callable[[], Any]) -> None:
        """Run a job that no round waits for, on a thread of its own; the service takes what it returns. One that raises is counted."""
        self._side_jobs.put(job)

    def run(self, service: Service, *, time_passed: object) -> None:
        """Feed the service until it stops, or the process must end.

        Args:
            service: what to run.
            time_passed: the item that tells the service that `wake_at` has come.
        """
        self._ending.begin()
        # Daemons: training that does not heed its cancellation must not keep a stopped process alive.
        for name, work, jobs in (("worker", self._work, self._jobs), ("side worker", self._work_aside, self._side_jobs)):
            threading.Thread(target=work, args=(jobs,), name=name, daemon=True).start()
        while service.stopped is None and not self._ending.is_due:
            now = time.monotonic()
            self._beat(now)
            wake_at = service.wake_at
            if wake_at is not None and now >= wake_at:
                service.take(time_passed)
                continue
            wait_seconds = MAX_WAIT_SECONDS if wake_at is None else min(MAX_WAIT_SECONDS, wake_at - now)
            try:
                item = self._inbox.get(timeout=wait_seconds)
            except queue.Empty:
                continue
            service.take(item)
        self._has_stopped = True
        self._jobs.put(None)
        self._side_jobs.put(None)

    def drain(self) -> None:
        """Let what still comes in fall on the floor, so that a stopping transport never waits for the inbox."""
        threading.Thread(target=self._discard, name="drain", daemon=True).start()

    def _discard(self) -> None:
        while True:
            self._inbox.get()

    def _work(self, jobs: queue.SimpleQueue[Callable[[], Any] | None]) -> None:
        while (job := jobs.get()) is not None:
            self.put(job())

    def _work_aside(self, jobs: queue.SimpleQueue[Callable[[], Any] | None]) -> None:
        while (job := jobs.get()) is not None:
            try:
                done = job()
            except Exception:  # nobody waits for it; the next job must find its worker
                self.num_failed_jobs += 1
                logger.exception("job=failed count=%d", self.num_failed_jobs)
            else:
                self.put(done)

    def _beat(self, now: float) -> None:
        if self._heartbeat is None or now < self._next_beat:
            return
        self._next_beat = now + HEARTBEAT_SECONDS
        try:
            self._heartbeat.touch()
        except OSError as error:
            # The health check sees it, too: a process that can't keep this file can't keep its work either.
            if not self._is_mute:
                logger.error("heartbeat=unwritable reason=%r", str(error))  # noqa: TRY400 - a sentence, not a bug
            self._is_mute = True
        else:
            self._is_mute = False


def set_up_logging(level: str) -> None:
    """Log to stdout, one key=value line each."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(LineFormatter("%(asctime)s level=%(levelname)s logger=%(name)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S%z"))
    logging.basicConfig(level=level, handlers=[handler])
