"""Reads what a broker retains, exactly to its end, one question after the other over one connection.

The end of an answer is known without waiting: after its own filters a question subscribes once more to the run's
state, and a broker delivers to one client in order. Memory holds a few messages, whatever the answer's size.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from federation import topics
from federation.broker_address import BrokerAddress
from federation.errors import ArchiveError, TransportError
from federation.mqtt import MqttTransport
from federation.transport import Connected, Delivered, Disconnected, Refused, TransportEvent

INBOX_SIZE = 64
"""Messages waiting at most: 16 MiB of chunks. A full inbox makes the broker wait."""

CONNECT_SECONDS = 15.0
SILENCE_SECONDS = 30.0
"""A broker that says nothing for so long in the middle of an answer is given up."""

POLL_SECONDS = 0.5


class RetainedReader:
    """A read-only client of a broker; a context manager.

    Args:
        address: the broker, with an identity that may read the run.
        run: the run whose state ends each answer.
    """

    def __init__(self, address: BrokerAddress, run: str) -> None:
        self._state_topic = str(topics.StateTopic(run))
        self._run = run
        self._inbox: queue.Queue[TransportEvent] = queue.Queue(INBOX_SIZE)
        self._closing = threading.Event()
        self._transport = MqttTransport(address, client_id=f"observer-{secrets.token_hex(4)}", on_event=self._put, session_expiry_seconds=0)

    def __enter__(self) -> Self:
        """Connect.

        Raises:
            TransportError: the broker can't be reached, or refuses us.
        """
        self._transport.start()
        event = self._next(time.monotonic() + CONNECT_SECONDS)
        if not isinstance(event, Connected):
            self.__exit__(None, None, None)
            raise TransportError(f"the broker can't be reached: {getattr(event, 'reason', 'it does not answer')}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leave."""
        self._closing.set()
        self._transport.stop(1.0)

    def read(self, filters: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """Yield topic and payload of everything retained under topic filters now.

        Raises:
            TransportError: the broker went away.
            ArchiveError: it holds no such run.
        """
        asked = [*(name for name in filters if name != self._state_topic), self._state_topic]
        self._transport.subscribe(asked)
        wants_state = self._state_topic in filters
        while True:
            event = self._next(time.monotonic() + SILENCE_SECONDS)
            match event:
                case Delivered(retained=True, topic=self._state_topic):
                    if wants_state:
                        yield event.topic, event.payload
                    break
                case Delivered(retained=True):
                    yield event.topic, event.payload
                case Disconnected() | Refused():
                    raise TransportError(f"the broker went away: {event.reason}")
                case None:
                    raise ArchiveError(f"the broker holds no run {self._run!r}; `fedmq status` lists those it holds")
        self._transport.unsubscribe(asked)

    def _next(self, give_up_at: float) -> TransportEvent | None:
        try:
            return self._inbox.get(timeout=max(0.0, give_up_at - time.monotonic()))
        except queue.Empty:
            return None

    def _put(self, event: TransportEvent) -> None:
        """Queue an event; on the network thread, which waits while the inbox is full."""
        while not self._closing.is_set():
            try:
                self._inbox.put(event, timeout=POLL_SECONDS)
            except queue.Full:
                continue
            return
