"""Reads what a broker retains, one question after the other over one connection.

MQTT 5 says nothing of the end of an answer, and orders messages of one topic only (section 4.6): neither a message of
another topic nor a PINGRESP shows that everything has come. So a question says what must be there, and ends when it is;
silence ends it only where something is missing, or where nobody can know. Memory holds a few messages, whatever
the answer's size.
"""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from types import TracebackType
from typing import Self

from federation.broker_address import BrokerAddress
from federation.errors import TransportError
from federation.mqtt import MqttTransport
from federation.topic_filter import matches
from federation.transport import Connected, Delivered, Disconnected, Refused, TransportEvent

INBOX_SIZE = 64
"""Messages waiting at most: 16 MiB of chunks. A full inbox makes the broker wait."""

CONNECT_SECONDS = 15.0
QUIET_SECONDS = 3.0
"""So long after the last message the rest is taken to be absent: several round trips of a bad link, for small messages."""

POLL_SECONDS = 0.5


class RetainedReader:
    """A read-only client of a broker; a context manager.

    Args:
        address: the broker, with an identity that may read what is asked for.
    """

    def __init__(self, address: BrokerAddress) -> None:
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

    def read(
        self, filters: Sequence[str], *, expected: Collection[str] | None = None, quiet_seconds: float = QUIET_SECONDS
    ) -> Iterator[tuple[str, bytes]]:
        """Yield topic and payload of what is retained under topic filters now, in any order; at times one of them twice.

        Args:
            filters: topic filters.
            expected: topics under them of which each must come before the answer ends; by default the filters themselves, so that
                those with wildcards are read until all is quiet.
            quiet_seconds: a topic that has not come so long after the last message is taken to be absent.

        Raises:
            TransportError: the broker went away.
        """
        awaited = set(filters if expected is None else expected)
        self._transport.subscribe(filters)
        try:
            while awaited:
                event = self._next(time.monotonic() + quiet_seconds)
                match event:
                    case Delivered(retained=True) if any(matches(name, event.topic) for name in filters):
                        awaited.discard(event.topic)
                        yield event.topic, event.payload
                    case Disconnected() | Refused():
                        raise TransportError(f"the broker went away: {event.reason}")
                    case None:
                        return
        finally:
            self._transport.unsubscribe(filters)

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
