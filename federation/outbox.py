"""Publishes that wait for their turn; the same for both transports, so that both keep order the same way."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from threading import Lock

from federation.transport import Payload

logger = logging.getLogger(__name__)

PACKET_EXTRA_BYTES = 32
"""Of a PUBLISH besides topic and payload: fixed header, lengths, packet identifier, properties."""

MAX_BYTES_ON_WAY = 8 << 20
"""Payload bytes on their way at once; paho keeps each twice until its PUBACK. One larger payload goes alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """One message to publish."""

    topic: str
    payload: Payload
    retain: bool

    def read_payload(self, max_packet_bytes: int | None) -> bytes | None:
        """Return the bytes, made now if they are made on demand; None, logged, when that fails or they are too many."""
        try:
            payload = self.payload if isinstance(self.payload, bytes) else self.payload()
        except Exception:  # whatever the caller's function raises must not end the transport's thread
            logger.exception("event=payload_failed topic=%s", self.topic)
            return None
        packet_bytes = len(self.topic.encode()) + len(payload) + PACKET_EXTRA_BYTES
        if max_packet_bytes is not None and packet_bytes > max_packet_bytes:
            text = "event=payload_oversized topic=%s packet_bytes=%d; the broker takes %d: raise its max_packet_size"
            logger.error(text, self.topic, packet_bytes, max_packet_bytes)
            return None
        return payload


class Outbox:
    """Publishes in order: waiting, then on their way, then done. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: deque[Publish] = deque()
        self._num_taken = 0
        self._is_closed = False

    @property
    def num_pending(self) -> int:
        """Publishes waiting or on their way."""
        with self._lock:
            return len(self._waiting) + self._num_taken

    def put(self, publish: Publish) -> bool:
        """Queue a publish; False once closed."""
        with self._lock:
            if not self._is_closed:
                self._waiting.append(publish)
            return not self._is_closed

    def take(self, max_packet_bytes: int | None) -> tuple[Publish, bytes] | None:
        """Return the next publish and its payload, from now on its way; None when none waits.

        Those whose payload can't be sent are skipped, with an error in the log.
        """
        while True:
            with self._lock:
                if not self._waiting:
                    return None
                self._num_taken += 1
                publish = self._waiting.popleft()
            payload = publish.read_payload(max_packet_bytes)
            if payload is not None:
                return publish, payload
            self.finish_one()

    def finish_one(self) -> None:
        """Forget one publish that was on its way."""
        with self._lock:
            self._num_taken -= 1

    def drop(self, prefix: str) -> int:
        """Forget what waits at or under a topic prefix (whole levels); return how many."""
        with self._lock:
            num_before = len(self._waiting)
            under = prefix.rstrip("/") + "/"
            self._waiting = deque(publish for publish in self._waiting if not f"{publish.topic}/".startswith(under))
            return num_before - len(self._waiting)

    def close(self, final: Publish | None) -> None:
        """Take nothing more but `final`, which goes last."""
        with self._lock:
            if not self._is_closed and final is not None:
                self._waiting.append(final)
            self._is_closed = True


class Window:
    """What is on its way, by packet identifier, and whether more may follow. Used by one thread."""

    def __init__(self, largest: int) -> None:
        self.largest = largest
        """Publishes on their way at once."""
        self._num_bytes: dict[int, int] = {}

    @property
    def is_open(self) -> bool:
        """True when another publish may be handed over."""
        return len(self._num_bytes) < self.largest and sum(self._num_bytes.values()) < MAX_BYTES_ON_WAY

    def add(self, packet_id: int, num_bytes: int) -> None:
        """Remember a publish handed over."""
        self._num_bytes[packet_id] = num_bytes

    def remove(self, packet_id: int) -> bool:
        """Forget an acknowledged one; False when it is not known."""
        return self._num_bytes.pop(packet_id, None) is not None
