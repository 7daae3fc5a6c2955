"""`python -m aggregator.guard`: keeps every node to its due on the broker, beside the aggregator and without it.

Follows all updates, statuses and metrics, and clears what no round asked for (docs/security.md). Configured by the
same `FEDMQ_BROKER_` variables as the aggregator, and `FEDMQ_STATE_DIR` for its heartbeat.

Exit status: 0 a signal came, 1 the broker refused it or a thread died, 2 the settings are wrong.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from aggregator.retained_quota import RetainedQuota
from federation import topics
from federation.broker_address import BrokerAddress
from federation.ending import Ending
from federation.environment import BrokerEnvironment, read_environment
from federation.errors import SettingsError, TransportError
from federation.mqtt import MqttTransport
from federation.process import Process, set_up_logging
from federation.rejections import Rejections
from federation.transport import Connected, Delivered, Refused, Transport, TransportEvent

logger = logging.getLogger("guard")

SWEEP_SECONDS = 10.0
"""An update may come a moment before we have read the plan it answers; what is still not due by then is cleared."""

STOP_SECONDS = 5.0

FILTERS = (
    f"{topics.PREFIX}/+/rounds/+/plan",
    f"{topics.PREFIX}/+/rounds/+/updates/+/#",
    topics.status_filter("+"),
    topics.metrics_filter("+"),
)
"""Plans first, so that a guard that starts late knows what was planned before it reads what was sent."""


class GuardConfig(BrokerEnvironment):
    """What the guard is told from outside."""

    state_dir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """A node's message came; of its payload only the size is known."""

    topic: str
    num_bytes: int


class Guard:
    """A service that carries messages into the books and clears what they condemn."""

    def __init__(self, transport: Transport, *, monotonic: Callable[[], float]) -> None:
        self._transport = transport
        self._monotonic = monotonic
        self._quota = RetainedQuota()
        self.wake_at: float | None = monotonic() + SWEEP_SECONDS
        self.stopped: str | None = None
        self.rejections = Rejections(logger)

    def take(self, item: TransportEvent | Weighed | None) -> None:
        """Take in one transport event, or None: the time for a sweep has come."""
        try:
            self._take(item)
        except Exception as error:  # the boundary: whatever a node has sent, the guard must be there for the next message
            if not isinstance(item, Delivered | Weighed):
                raise
            self.rejections.add(item.topic, error)

    def _take(self, item: TransportEvent | Weighed | None) -> None:
        match item:
            case Connected():
                # A new session delivers all that is retained: begin the books anew.
                self._quota = RetainedQuota()
                self._transport.subscribe(FILTERS)
                logger.info("broker=connected")
            case Refused():
                self.stopped = item.reason
            case Delivered():
                self._quota.note_plan(item.topic, item.payload)
            case Weighed():
                self._quota.note(item.topic, item.num_bytes)
                if self._quota.is_urgent:
                    self._sweep()
            case None:
                self._sweep()
            case _:
                logger.warning("broker=disconnected reason=%r", item.reason)

    def _sweep(self) -> None:
        self.wake_at = self._monotonic() + SWEEP_SECONDS
        for excess in self._quota.sweep():
            for topic in excess.topics:
                self._transport.publish(topic, b"", retain=True)
            logger.warning(
                "node=%s cleared=%d bytes=%d reason=%r", excess.node[:63], len(excess.topics), excess.num_bytes, excess.reason[:200]
            )


def _weigh(event: TransportEvent) -> TransportEvent | Weighed:
    """Keep only the number of bytes where nothing else matters, so that a full inbox stays small."""
    if isinstance(event, Delivered) and not event.topic.endswith("/plan"):
        return Weighed(topic=event.topic, num_bytes=len(event.payload))
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
