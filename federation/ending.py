"""How a process ends: by a signal from its first moment on, or because one of its threads died; within seconds, whatever it is doing.

Made before PyTorch is imported, which takes seconds. Until `begin` there is nothing to lose, and a signal ends the process
at once; from then on it is noted, the loop ends by itself, and what has not ended by then is cut off.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

logger = logging.getLogger(__name__)

STOP_SECONDS = 3.0
"""What a process that was told to end may take for its goodbyes; a sound broker needs a hundredth of it."""

LAST_RESORT_SECONDS = 4.5
"""After so long it is cut off, wherever it is: a supervisor may count on 5 s."""

FAILED = 1
"""Exit status when a thread died: a supervisor starts the process again."""


class Ending:
    """Notices signals and dead threads; one for a process, made and used on its main thread.

    Args:
        status: exit status when a signal came.
    """

    def __init__(self, *, status: int) -> None:
        self._status = status
        self._has_begun = False
        self._is_over = threading.Event()
        self._ends_at: float | None = None
        self.signal_name: str | None = None
        """The signal that came."""
        self.failure: str | None = None
        """The thread that died, as a sentence."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        threading.excepthook = self._on_thread_death
        threading.Thread(target=self._cut_off, name="last resort", daemon=True).start()

    @property
    def is_due(self) -> bool:
        """Whether the process must end."""
        return self._ends_at is not None

    def begin(self) -> None:
        """Begin what must end in order: a signal no longer ends the process at once."""
        self._has_begun = True

    def limit(self, seconds: float) -> float:
        """Return a wait of so many seconds, or what is left of it once the process must end."""
        return seconds if self._ends_at is None else max(0.0, min(seconds, self._ends_at - time.monotonic()))

    def wait(self) -> None:
        """Sleep until the process must end."""
        while not self.is_due:
            self._is_over.wait(1.0)

    def run(self, work: Callable[[], int]) -> None:
        """Do the process's work, and end it with the status that the work returns; 1 where it raised, or a thread died.

        Without the interpreter's own end: a worker inside PyTorch would be torn out of it, which aborts the process.
        """
        try:
            status = work()
        except Exception:  # a bug; a supervisor starts the process again
            logger.critical("event=failed; the process ends, to be started again", exc_info=True)
            status = FAILED
        _exit(FAILED if self.failure else status)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_name is not None:
            return
        self.signal_name = signal.Signals(number).name
        if not self._has_begun:
            _exit(self._status)
        self._end()

    def _on_thread_death(self, arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_type is SystemExit:
            return
        name = arguments.thread.name if arguments.thread else "-"
        self.failure = f"thread {name!r} died: {arguments.exc_type.__name__}: {arguments.exc_value}"[:500]
        trace = (arguments.exc_type, arguments.exc_value or arguments.exc_type(), arguments.exc_traceback)
        logger.critical("event=thread_died thread=%r; the process ends, to be started again", name, exc_info=trace)
        self._end()

    def _end(self) -> None:
        if self._ends_at is None:
            self._ends_at = time.monotonic() + STOP_SECONDS
        self._is_over.set()

    def _cut_off(self) -> None:
        self._is_over.wait()
        time.sleep(LAST_RESORT_SECONDS)
        logger.warning("event=cut_off seconds=%.1f; something did not end in time", LAST_RESORT_SECONDS)
        _exit(FAILED if self.failure else self._status)


def _exit(status: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, RuntimeError):
            # Closed, full, or in use by the very code that the signal interrupted.
            continue
    os._exit(status)
