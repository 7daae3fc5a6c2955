"""Says on the broker that this aggregator is there: as it connects, every few seconds, and, when it goes, by its goodbye or its will.

A run's retained state does not tell: it says `training` for ever where the aggregator was killed. By this word a node that was told no
run leaves one that nobody leads, and `fedmq stop` says that nobody will heed it.
"""

from __future__ import annotations

import threading

from federation import topics
from federation.messages import AggregatorStatus
from federation.transport import Connected, OnEvent, Transport, TransportEvent, Will

PRESENCE_SECONDS = 20.0
"""Between two words; nodes take four missing ones for silence (`edge_node.discovery`)."""


class Presence:
    """The presence of one process that leads a run.

    Args:
        run: the run's name.
        instance: of this process, random: a twin's last word is told from ours by it.
        seconds: between two words.
    """

    def __init__(self, run: str, *, instance: str, seconds: float = PRESENCE_SECONDS) -> None:
        self._topic = str(topics.AggregatorTopic(run))
        self._run = run
        self._instance = instance
        self._seconds = seconds
        self._transport: Transport | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run_on, name="presence", daemon=True)

    @property
    def will(self) -> Will:
        """What the broker publishes when this process vanishes; also its goodbye."""
        return Will(topic=self._topic, payload=self._payload(online=False))

    def watch(self, on_event: OnEvent) -> OnEvent:
        """Return a handler that says again after each connection that we are there: the will may have been published meanwhile."""

        def handle(event: TransportEvent) -> None:
            if isinstance(event, Connected):
                self._say()
            on_event(event)

        return handle

    def start(self, transport: Transport) -> None:
        """Begin to say so through a transport."""
        self._transport = transport
        self._thread.start()

    def stop(self) -> None:
        """Say nothing more; the goodbye is the transport's last word."""
        self._stopping.set()

    def _run_on(self) -> None:
        while not self._stopping.wait(self._seconds):
            self._say()

    def _say(self) -> None:
        if self._transport is not None and not self._stopping.is_set():
            # One word is enough for a broker that was away for long.
            self._transport.drop_pending(self._topic)
            self._transport.publish(self._topic, self._payload(online=True), retain=True)

    def _payload(self, *, online: bool) -> bytes:
        return AggregatorStatus(run=self._run, online=online, instance=self._instance).to_payload()
