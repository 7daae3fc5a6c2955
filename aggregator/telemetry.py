"""Measures a run beside it: an MQTT session and threads of its own, so that no round ever waits for a point.

    broker --own persistent session--> inbox --> Monitor --> metrics.jsonl --> PUBACK
                                                                 +--> Forwarder --> InfluxDB

A message is acknowledged only once its points are in the file. What the broker could not deliver, because the
aggregator was away, it queues; what the database could not take waits in the file.
"""

from __future__ import annotations

import logging
import os
import queue
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from aggregator.broker_figures import FIELD_OF_TOPIC
from aggregator.forwarder import Forwarder
from aggregator.monitor import Monitor
from aggregator.record import RunRecord
from aggregator.run_life import Life
from federation import topics
from federation.clock import Clock
from federation.transport import Connected, Delivered, Disconnected, Refused, Transport, TransportEvent

logger = logging.getLogger("aggregator")

SESSION_SECONDS = 14 * 86_400
"""How long the broker queues for an absent aggregator: what broker/mosquitto.conf allows at most."""

INBOX_SIZE = 256
TICK_SECONDS = 1.0
GOODBYE_SECONDS = 5.0
"""What the coordinator has seen comes here, too, a moment later; a node that is gone for good must not be waited for twice."""

GOODBYE_POLL_SECONDS = 0.1

TRANSPORT_SECONDS = 1.0
"""For the session's goodbye: it publishes nothing."""

RETRY_SECONDS = 5.0
"""Pause before a point is offered again to a full disk; the broker queues meanwhile."""


class AcknowledgingTransport(Transport, Protocol):
    """A transport that leaves it to its owner when the broker may forget a message."""

    def acknowledge(self, message: Delivered) -> None:
        """Tell the broker that a message is safe."""

    def forget_session(self) -> None:
        """Let `stop` end the session at the broker."""


class Telemetry:
    """Follows one run and records what it measures.

    Args:
        record: the run's folder, opened.
        connect: makes the transport, not started, that hands its events to the given function.
        forwarder: carries the journal to the database; None without one.
        clock: what time it is.
        is_superseded: whether another aggregator leads the run: the session at the broker is its.
    """

    def __init__(
        self,
        *,
        record: RunRecord,
        connect: Callable[[Callable[[TransportEvent], None]], AcknowledgingTransport],
        forwarder: Forwarder | None,
        clock: Clock,
        is_superseded: Callable[[], bool] = lambda: False,
    ) -> None:
        self._record = record
        record.takes_metrics = False
        self._monitor = Monitor(record)
        self._forwarder = forwarder
        self._clock = clock
        self._inbox: queue.Queue[TransportEvent] = queue.Queue(INBOX_SIZE)
        self._stopping = threading.Event()
        self._is_superseded = is_superseded
        self._has_stepped_down = False
        self._look_at = 0.0
        self._is_new = True
        self._transport = connect(self._put)
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def start(self) -> None:
        """Begin to follow the run."""
        if self._forwarder is not None:
            self._forwarder.start()
        self._thread.start()
        self._transport.start()

    def stop(self, timeout_seconds: float, *, has_ended: bool) -> None:
        """Record what has come, write it to the database as far as the time goes, and end.

        Args:
            timeout_seconds: for all of it.
            has_ended: the nodes were told that the run is over: wait for their last figures, and leave no session at the broker.
        """
        give_up_at = self._clock.monotonic() + timeout_seconds
        if has_ended:
            self._await_goodbyes(min(timeout_seconds, GOODBYE_SECONDS))
            self._transport.forget_session()
        self._stopping.set()
        self._thread.join(max(0.0, give_up_at - self._clock.monotonic()))
        if not self._has_stepped_down:
            self._append(self._monitor.samples(*self._now(), self._figures))
            self._transport.stop(min(TRANSPORT_SECONDS, max(0.0, give_up_at - self._clock.monotonic())))
        if self._forwarder is not None:
            self._forwarder.stop(max(0.0, give_up_at - self._clock.monotonic()))

    def _begin_life(self, now_ns: int) -> Life | None:
        try:
            return self._record.begin_life(now_ns)
        except OSError as error:  # a full disk costs points, never a run
            logger.error("run=%s life=unwritable reason=%r", self._record.settings.run, str(error))  # noqa: TRY400 - expected, no trace
            return None

    def _await_goodbyes(self, timeout_seconds: float) -> None:
        """Wait until the last words of every node are here: the coordinator has seen them leave, or given up on them."""
        give_up_at = self._clock.monotonic() + timeout_seconds
        while self._clock.monotonic() < give_up_at and not (self._monitor.has_ended and self._monitor.num_online == 0):
            self._stopping.wait(GOODBYE_POLL_SECONDS)

    def _put(self, event: TransportEvent) -> None:
        """Queue an event; on the network thread, which waits while the inbox is full."""
        while not self._stopping.is_set() and not self._has_stepped_down:
            try:
                self._inbox.put(event, timeout=TICK_SECONDS)
            except queue.Full:
                continue
            return

    def _run(self) -> None:
        now, now_ns = self._now()
        self._append(self._monitor.started(now, now_ns, self._begin_life(now_ns)))
        while not (self._stopping.is_set() and self._inbox.empty()):
            event: TransportEvent | None = None
            with suppress(queue.Empty):
                event = self._inbox.get(timeout=0.05 if self._stopping.is_set() else TICK_SECONDS)
            if event is not None:
                self._take(event)
            if self._must_step_down(event):
                self._step_down()
                return
            self._append(self._monitor.tick(*self._now(), self._figures))

    def _must_step_down(self, event: TransportEvent | None) -> bool:
        now = self._clock.monotonic()
        if now < self._look_at and not isinstance(event, Connected):
            return False
        self._look_at = now + TICK_SECONDS  # it reads a file
        return self._is_superseded()

    def _step_down(self) -> None:
        """Leave the session to the aggregator that leads: both under one name would throw each other out again and again."""
        logger.warning("telemetry=superseded; another aggregator measures this run")
        self._has_stepped_down = True
        self._transport.stop(TICK_SECONDS)

    def _take(self, event: TransportEvent) -> None:
        match event:
            case Connected():
                # A process that is new to its session must hear again what is retained: who is here, what goes on.
                if self._is_new or not event.session_present:
                    self._transport.subscribe(self._filters())
                self._is_new = False
                self._monitor.linked(self._clock.monotonic(), is_connected=True)
            case Disconnected():
                self._monitor.linked(self._clock.monotonic(), is_connected=False)
            case Delivered():
                self._on_delivered(event)
            case Refused():
                logger.error("telemetry=refused reason=%r; the run goes on without", event.reason)

    def _on_delivered(self, message: Delivered) -> None:
        try:
            points = self._monitor.take(message, *self._now())
        except Exception as error:  # noqa: BLE001 - whatever a node has sent, the next message must find this thread
            self._record.rejections.add(message.topic, error)
        else:
            self._append(points)
        self._transport.acknowledge(message)

    def _append(self, points: list[Any]) -> None:
        """Record points; a full disk makes this thread wait, and so the broker, but no round."""
        while points:
            try:
                self._record.journal.append(points)
            except OSError as error:
                logger.error("journal=unwritable reason=%r; free some disk space", str(error))  # noqa: TRY400 - expected, no trace
                if self._stopping.wait(RETRY_SECONDS):
                    return
            else:
                return

    def _now(self) -> tuple[float, int]:
        """Return the moment by both clocks."""
        return self._clock.monotonic(), self._clock.time_ns()

    def _filters(self) -> list[str]:
        run = self._record.settings.run
        return [str(topics.StateTopic(run)), topics.status_filter(run), topics.metrics_filter(run), *FIELD_OF_TOPIC]

    def _figures(self) -> dict[str, dict[str, Any]]:
        journal, forwarder = self._record.journal, self._forwarder
        usage = shutil.disk_usage(self._record.out_dir)
        telemetry = {
            "recorded_points": journal.num_recorded,
            "rejected_points": self._record.num_rejected_points,
            "dropped_points": journal.num_dropped,
            "rejected_payloads": self._record.rejections.num_total,
            "written_points": forwarder.num_written if forwarder else None,
            "waiting_bytes": forwarder.num_waiting_bytes if forwarder else None,
        }
        run = {"disk_used": 1 - usage.free / usage.total, "process_memory_bytes": _resident_bytes()}
        return {"telemetry": telemetry, "run": run}


def _resident_bytes() -> int | None:
    """Return this process's resident memory; None where the system has no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
