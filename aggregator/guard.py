"""`python -m aggregator.guard`: keeps every node to its due on the broker, beside the aggregator and without it.

Follows all updates, statuses and metrics, and clears what no round asked for (docs/security.md). It acknowledges what it reads only
as fast as what it clears gets through, so that its memory stays small whatever the broker holds. Configured by the
same `FEDMQ_BROKER_` variables as the aggregator, and `FEDMQ_STATE_DIR` for its heartbeat.

Exit status: 0 a signal came, 1 the broker refused it or a thread died, 2 the settings are wrong.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from aggregator.retained_quota import RetainedQuota
from federation import topics
from federation.broker_address import BrokerAddress
from federation.ending import Ending
from federation.environment import BrokerEnvironment, read_environment
from federation.errors import SettingsError, TransportError
from federation.mqtt import MqttTransport
from federation.process import Process, set_up_logging
from federation.rejections import Rejections
from federation.topic_filter import matches
from federation.transport import Connected, Delivered, Refused, Transport, TransportEvent

logger = logging.getLogger("guard")

SWEEP_SECONDS = 10.0
"""An update may come a moment before we have read the plan it answers; what is still not due by then is cleared."""

SCAN_SECONDS = 60.0
"""After something was cleared, all that is retained is looked at again, at most so often: of a flood, the broker's queue for
us may have dropped a part."""

MAX_PENDING = 64
"""Clearings on their way at once, twice what a link carries at a time: 4 MB of the longest topics there can be. Until there are
fewer, the broker sends us nothing more."""

POLL_SECONDS = 0.05
"""How often we look whether they have got through."""

STOP_SECONDS = 5.0

OWN_FILTERS = (topics.state_filter_of_all_runs(), topics.plan_filter("+"))
FILTERS = (
    *OWN_FILTERS,
    f"{topics.PREFIX}/+/rounds/+/updates/+/#",
    topics.status_filter("+"),
    topics.metrics_filter("+"),
)
"""States and plans first, so that a guard that starts late knows what was planned before it reads what was sent."""


class GuardConfig(BrokerEnvironment):
    """What the guard is told from outside."""

    state_dir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """A node's message came; of its payload only the size is known."""

    message: Delivered
    """Without its payload."""
    num_bytes: int


class AcknowledgedTransport(Transport, Protocol):
    """A transport that leaves acknowledging to its owner."""

    def acknowledge(self, message: Delivered) -> None:
        """Let the broker forget a message."""


class Guard:
    """A service that carries messages into the books and clears what they condemn.

    Args:
        transport: not yet started; the guard acknowledges its messages itself.
        monotonic: the clock.
    """

    def __init__(self, transport: AcknowledgedTransport, *, monotonic: Callable[[], float]) -> None:
        self._transport = transport
        self._monotonic = monotonic
        self._quota = RetainedQuota()
        self._held_back: list[Delivered] = []
        self._poll_at = 0.0
        self._sweep_at = self._scan_at = monotonic() + SWEEP_SECONDS
        self._must_scan = False
        self.stopped: str | None = None
        self.rejections = Rejections(logger)

    @property
    def wake_at(self) -> float:
        """When something is due, on the monotonic clock."""
        return min(self._sweep_at, self._poll_at) if self._held_back else self._sweep_at

    def take(self, item: TransportEvent | Weighed | None) -> None:
        """Take in one transport event, or None: the time for something has come."""
        if isinstance(item, Delivered | Weighed):
            self._held_back.append(item.message if isinstance(item, Weighed) else item)
        try:
            self._take(item)
        except Exception as error:  # the boundary: whatever a node has sent, the guard must be there for the next message
            if not isinstance(item, Delivered | Weighed):
                raise
            self.rejections.add(item.message.topic if isinstance(item, Weighed) else item.topic, error)
        self._acknowledge()

    def _take(self, item: TransportEvent | Weighed | None) -> None:
        match item:
            case Connected():
                # A new session delivers all that is retained: begin the books anew.
                logger.info("broker=connected")
                self._held_back.clear()
                self._scan()
            case Refused():
                self.stopped = item.reason
            case Delivered():
                self._quota.note_own(item.topic, item.payload)
            case Weighed():
                if self._quota.note(item.message.topic, item.num_bytes, item.message.num_property_bytes):
                    self._transport.publish(item.message.topic, b"", retain=True)
                if self._quota.is_urgent:
                    self._sweep()
            case None:
                if self._monotonic() >= self._sweep_at:
                    self._sweep()
            case _:
                logger.warning("broker=disconnected reason=%r", item.reason)

    def _acknowledge(self) -> None:
        """Let the broker send more, unless too much of what we clear is still on its way."""
        if self._transport.num_pending >= MAX_PENDING:
            self._poll_at = self._monotonic() + POLL_SECONDS
            return
        for message in self._held_back:
            self._transport.acknowledge(message)
        self._held_back.clear()

    def _sweep(self) -> None:
        now = self._monotonic()
        self._sweep_at = now + SWEEP_SECONDS
        for excess in self._quota.sweep():
            self._must_scan = True
            for topic in excess.topics:
                self._transport.publish(topic, b"", retain=True)
            logger.warning("node=%s cleared=%d bytes=%d reason=%r", excess.node, excess.num_topics, excess.num_bytes, excess.reason[:200])
        if self._must_scan and now >= self._scan_at and not self._transport.num_pending:
            self._scan()

    def _scan(self) -> None:
        """Have the broker send all that it retains, and begin the books anew."""
        self._quota = RetainedQuota()
        self._must_scan = False
        self._scan_at = self._monotonic() + SCAN_SECONDS
        self._transport.subscribe(FILTERS)


def _weigh(event: TransportEvent) -> TransportEvent | Weighed:
    """Keep only the number of bytes where nothing else matters, so that a full inbox stays small."""
    if isinstance(event, Delivered) and not any(matches(own, event.topic) for own in OWN_FILTERS):
        return Weighed(message=replace(event, payload=b""), num_bytes=len(event.payload))
    return event


def main() -> None:
    """Guard until a signal comes, and end the process."""
    ending = Ending(status=0)
    ending.run(lambda: guard_until_told(ending))


def guard_until_told(ending: Ending) -> int:
    """Guard until the process must end; return the exit status."""
    try:
        config = read_environment(GuardConfig, os.environ)
        set_up_logging(config.log_level)
        config.state_dir.mkdir(parents=True, exist_ok=True)
        process = Process(ending, heartbeat=config.state_dir / "heartbeat")
        transport = MqttTransport(
            BrokerAddress.from_environment(config),
            client_id="guard",
            on_event=lambda event: process.put(_weigh(event)),
            session_expiry_seconds=0,
            manual_ack=True,
        )
    except (SettingsError, TransportError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    guard = Guard(transport, monotonic=time.monotonic)
    transport.start()
    process.run(guard, time_passed=None)
    process.drain()
    transport.stop(ending.limit(STOP_SECONDS))
    if guard.stopped:
        logger.error("broker=refused reason=%r", guard.stopped)
        return 1
    return 0


if __name__ == "__main__":
    main()
