"""Kills this process at a named step of the protocol: what fault tests arm it with, and nothing else does.

    FEDMQ_FAULT_STEP=before:update-chunk:2     as the second chunk of an update is about to be sent
    FEDMQ_FAULT_STEP=after:result:1            shortly after the first result was sent, acknowledged or not
    FEDMQ_FAULT_STEP=received:plan:3           as the third plan has come, before anything is made of it

Killed means SIGKILL: no farewell, no flush, no exit handler.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

from federation import topics
from federation.errors import RemoteProtocolError, SettingsError
from federation.transport import Delivered, OnEvent, Payload, Transport, TransportEvent

logger = logging.getLogger(__name__)

AFTER_SECONDS = 0.02
"""From the hand-over to the network thread until the kill: on loopback the broker has the message by then."""

KINDS = (
    "state",
    "status",
    "plan",
    "global-chunk",
    "global-manifest",
    "strategy-chunk",
    "strategy-manifest",
    "update-chunk",
    "update-manifest",
    "ack",
    "result",
    "metrics",
    "control",
)
"""Names of the topics: `topics.GlobalChunkTopic` is `global-chunk`."""

_STEP = re.compile(r"(before|after|received):([a-z-]+):([1-9][0-9]{0,5})")


@dataclass(slots=True, kw_only=True)
class FaultStep:
    """One step of the protocol, counted from 1."""

    moment: Literal["before", "after", "received"]
    kind: str
    count: int
    kill: Callable[[], None] = field(default=lambda: os.kill(os.getpid(), signal.SIGKILL))
    _num_seen: int = 0

    def watch(self, on_event: OnEvent) -> OnEvent:
        """Return a handler that looks at each message before `on_event` gets it."""

        def handle(event: TransportEvent) -> None:
            if self.moment == "received" and isinstance(event, Delivered) and self._is_due(event.topic):
                self.kill()
            on_event(event)

        return handle

    def arm(self, transport: Transport) -> Transport:
        """Return a transport that counts what is sent through it."""
        return _ArmedTransport(transport, self)

    def sending(self, topic: str) -> None:
        """Note that a message is handed to the network."""
        if self.moment == "received" or not self._is_due(topic):
            return
        if self.moment == "before":
            self.kill()
        else:
            threading.Timer(AFTER_SECONDS, self.kill).start()

    def _is_due(self, topic: str) -> bool:
        if kind_of(topic) != self.kind:
            return False
        self._num_seen += 1
        return self._num_seen == self.count


class _ArmedTransport:
    """A transport whose payloads are made as they are sent, so that the step is known. Implements `Transport`."""

    def __init__(self, transport: Transport, step: FaultStep) -> None:
        self._transport = transport
        self._step = step

    @property
    def num_pending(self) -> int:
        """Publishes not yet acknowledged by the broker."""
        return self._transport.num_pending

    def start(self) -> None:
        """Connect in the background."""
        self._transport.start()

    def subscribe(self, filters: Sequence[str]) -> None:
        """Ask for the messages of topic filters."""
        self._transport.subscribe(filters)

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """Ask for no more of them."""
        self._transport.unsubscribe(filters)

    def publish(self, topic: str, payload: Payload, *, retain: bool = False) -> None:
        """Queue a message."""

        def make() -> bytes:
            self._step.sending(topic)
            return payload if isinstance(payload, bytes) else payload()

        self._transport.publish(topic, make, retain=retain)

    def drop_pending(self, prefix: str) -> None:
        """Forget publishes under a topic prefix that have not been handed to the broker yet."""
        self._transport.drop_pending(prefix)

    def stop(self, timeout_seconds: float, *, final: tuple[str, bytes] | None = None) -> None:
        """Send what is pending and then `final`, say goodbye, and end."""
        self._transport.stop(timeout_seconds, final=final)


def parse_step(text: str) -> FaultStep:
    """Return the step that a text names.

    Raises:
        SettingsError: it names none.
    """
    match = _STEP.fullmatch(text)
    if match is None or match.group(2) not in KINDS:
        raise SettingsError(f"FEDMQ_FAULT_STEP: {text!r} is not before:KIND:N, after:KIND:N or received:KIND:N; kinds: {', '.join(KINDS)}")
    logger.warning("event=armed step=%s; this process will kill itself there", text)
    return FaultStep(moment=cast("Literal['before', 'after', 'received']", match.group(1)), kind=match.group(2), count=int(match.group(3)))


def kind_of(topic: str) -> str:
    """Return a topic's kind, empty for a foreign one."""
    try:
        name = type(topics.parse_topic(topic)).__name__
    except RemoteProtocolError:
        return ""
    return re.sub(r"(?<!^)([A-Z])", r"-\1", name.removesuffix("Topic")).lower()


def connect_armed(connect: Callable[[OnEvent], Transport], on_event: OnEvent, step: str | None) -> Transport:
    """Return the transport that `connect` makes for `on_event`, armed with a step if there is one.

    Raises:
        SettingsError: the text names no step.
    """
    if step is None:
        return connect(on_event)
    armed = parse_step(step)
    return armed.arm(connect(armed.watch(on_event)))
