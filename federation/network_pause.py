"""How the network thread sleeps: woken by other threads, and longer after each failure."""

from __future__ import annotations

import selectors
import socket
import time
from contextlib import suppress
from random import SystemRandom
from ssl import SSLSocket
from typing import Any, Self

FIRST_BACK_OFF_SECONDS = 1.0
LONGEST_BACK_OFF_SECONDS = 60.0


class WakeUp:
    """Ends a thread's sleep from another thread; selectable by its `reader`."""

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.settimeout(0.0)
        self._writer.settimeout(0.0)

    def send(self) -> None:
        """Wake the sleeper, now or when it next goes to sleep."""
        # A full pipe wakes as well as another byte would; a closed one has nobody left to wake.
        with suppress(OSError):
            self._writer.send(b"\0")

    def clear(self) -> None:
        """Forget the wake-ups so far."""
        with suppress(BlockingIOError):
            while self.reader.recv(4096):
                pass

    def sleep(self, seconds: float) -> None:
        """Sleep so long at the most, or until a wake-up."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.reader, selectors.EVENT_READ)
            if selector.select(max(0.0, seconds)):
                self.clear()

    def close(self) -> None:
        """Free the sockets."""
        self.reader.close()
        self._writer.close()


class Deadline:
    """When a transport that was told to stop must have ended; until then there is none."""

    def __init__(self) -> None:
        self._at: float | None = None

    @property
    def is_set(self) -> bool:
        """True once told to stop."""
        return self._at is not None

    @property
    def has_passed(self) -> bool:
        """True when the time is over."""
        return self._at is not None and time.monotonic() >= self._at

    def set(self, seconds: float) -> None:
        """Stop within so many seconds from now."""
        self._at = time.monotonic() + seconds

    def extend(self, seconds: float) -> None:
        """Allow so many seconds more, from now if the time is over."""
        self._at = max(self._at or 0.0, time.monotonic()) + seconds

    def limit(self, seconds: float) -> float:
        """Return a sleep of so many seconds, or what is left."""
        return seconds if self._at is None else max(0.0, min(seconds, self._at - time.monotonic()))


class LinkSelector:
    """Waits for a link or a wake-up; a context manager."""

    def __init__(self, link: Any, wake_up: WakeUp) -> None:
        self._link = link
        self._wake_up = wake_up
        self._events = selectors.EVENT_READ
        self._selector = selectors.DefaultSelector()
        self._selector.register(link, self._events)
        self._selector.register(wake_up.reader, selectors.EVENT_READ)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()

    def wait(self, seconds: float, *, wants_write: bool) -> tuple[bool, bool]:
        """Return whether the link can be read and written, after a wake-up or so many seconds at the latest."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if wants_write else 0)
        if events != self._events:
            self._selector.modify(self._link, events)
            self._events = events
        # TLS may hold decrypted bytes that the socket no longer announces.
        has_buffered = isinstance(self._link, SSLSocket) and self._link.pending() > 0
        ready = {key.fileobj: mask for key, mask in self._selector.select(0.0 if has_buffered else seconds)}
        if self._wake_up.reader in ready:
            self._wake_up.clear()
        mask = ready.get(self._link, 0)
        return has_buffered or bool(mask & selectors.EVENT_READ), bool(mask & selectors.EVENT_WRITE)


class BackOff:
    """Delays between attempts: exponential with full jitter, so that a fleet does not return all at once.

    Source: Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
    """

    def __init__(self) -> None:
        self._num_failures = 0
        self._random = SystemRandom()

    def next_seconds(self) -> float:
        """Return how long to wait after one more failure."""
        longest = min(LONGEST_BACK_OFF_SECONDS, FIRST_BACK_OFF_SECONDS * 2.0 ** min(self._num_failures, 16))
        self._num_failures += 1
        return self._random.uniform(0.0, longest)

    def reset(self) -> None:
        """Begin with short delays again, after a success."""
        self._num_failures = 0
