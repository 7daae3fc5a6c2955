"""Finding a run, and leaving one that nobody leads: for a node that was told none.

A run is led while its aggregator's presence says so (`aggregator.presence`): live, every 20 s, and retained. Retained words may be those
of a broker and an aggregator that died together; so a live one counts for more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge_node.events import Stop, TimePassed
from edge_node.service import EdgeNodeService
from federation import topics
from federation.messages import AggregatorStatus, RunState, parse
from federation.rejections import Rejections
from federation.transport import Connected, Delivered, Disconnected, Refused, Transport, TransportEvent

logger = logging.getLogger("edge_node")

SETTLE_SECONDS = 1.0
"""What is retained has come by then; a run that is heard live is joined at once."""

GONE_SECONDS = 30.0
"""So long after its goodbye or will an aggregator may still come back: a restart of its container takes ten."""

SILENT_SECONDS = 90.0
"""Without a live word for so long an aggregator is gone without either: four of its words are missing."""

LOOK_SECONDS = 5.0
"""How often a node looks whether its run is still led."""


@dataclass(slots=True)
class _Run:
    """What is known of one run."""

    is_active: bool = False
    """It waits for nodes or trains."""
    is_led: bool | None = None
    """By its aggregator's last word; None before the first."""
    instance: str = ""
    """The process of that word."""
    changed_at: float = 0.0
    """When `is_led` last changed."""
    heard_at: float | None = None
    """When its aggregator was last heard live."""


class RunBoard:
    """The runs of a broker. Pure; times are those of one clock."""

    def __init__(self) -> None:
        self._runs: dict[str, _Run] = {}

    def note(self, message: Delivered, now: float) -> None:
        """Take in a run's state or its aggregator's presence; anything else is passed over.

        Raises:
            RemoteProtocolError: it is nothing that its topic may hold.
        """
        if not message.payload:
            return
        match topics.parse_topic(message.topic):
            case topics.StateTopic(run=name):
                self._run(name).is_active = parse(RunState, message.payload).phase in {"waiting", "training"}
            case topics.AggregatorTopic(run=name):
                self._note_presence(self._run(name), parse(AggregatorStatus, message.payload), now, is_live=not message.retained)

    def hear(self, name: str, now: float) -> None:
        """Note a sign of life: something of a run that was not retained."""
        self._run(name).heard_at = now

    def candidates(self, now: float) -> list[str]:
        """Return the active runs that may be led, the surest first: heard live, then by a retained word, then without any."""
        found = [(self._doubt(run, now), name) for name, run in self._runs.items() if run.is_active and run.is_led is not False]
        return [name for _, name in sorted(found)]

    def led_live(self, now: float) -> list[str]:
        """Return the active runs whose aggregator was heard just now."""
        return [name for name in self.candidates(now) if self._runs[name].is_led and self._doubt(self._runs[name], now) == 0]

    def is_abandoned(self, name: str, now: float) -> bool:
        """Return whether a run has lost its aggregator for good, as far as one can know."""
        run = self._run(name)
        if run.is_led is None:
            return False
        if not run.is_led:
            return now >= run.changed_at + GONE_SECONDS
        return now >= max(run.changed_at, run.heard_at or 0.0) + SILENT_SECONDS

    def forgive(self, now: float) -> None:
        """Begin all waits anew: while this node was not connected it could hear nobody."""
        for run in self._runs.values():
            run.changed_at = now
            run.heard_at = None

    def _run(self, name: str) -> _Run:
        return self._runs.setdefault(name, _Run())

    def _note_presence(self, run: _Run, status: AggregatorStatus, now: float, *, is_live: bool) -> None:
        if not status.online and run.is_led and run.instance != status.instance:
            return  # the will of a process that a newer one has replaced
        if run.is_led is not status.online:
            run.changed_at = now
        run.is_led, run.instance = status.online, status.instance
        if is_live and status.online:
            run.heard_at = now

    def _doubt(self, run: _Run, now: float) -> int:
        if run.heard_at is not None and now < run.heard_at + SILENT_SECONDS:
            return 0
        return 1 if run.is_led else 2


class RunFinder:
    """A service that stops when it has seen a run that waits for nodes or trains, and may be led.

    Args:
        transport: not yet started; its events are handed to `take`.
        avoid: a run this node has just left: taken only if its aggregator is heard live.
        monotonic: the clock.
    """

    def __init__(self, transport: Transport, *, avoid: str | None = None, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._transport = transport
        self._avoid = avoid
        self._monotonic = monotonic
        self._board = RunBoard()
        self._settles_at: float | None = None
        self._is_settled = False
        self._rejections = Rejections(logger)
        self.run: str | None = None
        self.stopped: str | None = None

    @property
    def wake_at(self) -> float | None:
        """When what is retained has come; from then on each message is looked at as it comes."""
        return None if self._is_settled else self._settles_at

    def take(self, item: TransportEvent | TimePassed) -> None:
        """Take in one transport event, or that the time has come."""
        now = self._monotonic()
        match item:
            case Connected():
                self._transport.subscribe([topics.state_filter_of_all_runs(), topics.aggregator_filter_of_all_runs()])
                self._settles_at = now + SETTLE_SECONDS
                logger.info("run=unknown waiting for an active run on the broker")
            case Refused():
                self.stopped = item.reason
            case Delivered():
                try:
                    self._board.note(item, now)
                except Exception as error:  # noqa: BLE001 - the boundary: the next message must find this node
                    self._rejections.add(item.topic, error)
            case Disconnected():
                logger.warning("broker=disconnected reason=%r", item.reason)
        self._choose(now)

    def _choose(self, now: float) -> None:
        if self.stopped is not None:
            return
        self._is_settled |= self._settles_at is not None and now >= self._settles_at
        found = self._board.led_live(now)
        if self._is_settled:
            found += [name for name in self._board.candidates(now) if name != self._avoid]
        if found:
            self.run = found[0]
            self.stopped = f"found run {self.run}"


class RunFollower:
    """The service of a node in a run it has found itself: leaves it where nobody leads it and another run is led.

    Args:
        service: takes part in the run.
        run: the run's name.
        transport: the service's.
        monotonic: the clock.
    """

    def __init__(
        self, service: EdgeNodeService, *, run: str, transport: Transport, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._service = service
        self._run = run
        self._transport = transport
        self._monotonic = monotonic
        self._board = RunBoard()
        self._look_at = monotonic() + LOOK_SECONDS
        self._own = f"{topics.PREFIX}/{run}/"

    @property
    def wake_at(self) -> float | None:
        """When `TimePassed` is due, on the monotonic clock."""
        times = (self._service.wake_at, self._look_at)
        return min(moment for moment in times if moment is not None)

    @property
    def stopped(self) -> object | None:
        """Why the service has ended; None while it goes on."""
        return self._service.stopped

    def take(self, item: Any) -> None:
        """Take in one event."""
        now = self._monotonic()
        if isinstance(item, Delivered):
            self._take_message(item, now)
        else:
            self._service.take(item)
        if isinstance(item, Connected):
            self._board.forgive(now)
            self._transport.subscribe([topics.state_filter_of_all_runs(), topics.aggregator_filter_of_all_runs()])
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._leave_if_abandoned(now)

    def _take_message(self, message: Delivered, now: float) -> None:
        is_own, is_presence = message.topic.startswith(self._own), message.topic.endswith("/aggregator")
        if is_own and not is_presence:
            self._service.take(message)
            if not message.retained:
                self._board.hear(self._run, now)
        if is_presence or message.topic.endswith("/state"):
            try:
                self._board.note(message, now)
            except Exception as error:  # noqa: BLE001 - the boundary: the next message must find this node
                self._service.rejections.add(message.topic, error)

    def _leave_if_abandoned(self, now: float) -> None:
        if self._service.stopped is not None or not self._board.is_abandoned(self._run, now):
            return
        others = [name for name in self._board.led_live(now) if name != self._run]
        if others:
            self._service.stopped = Stop(reason=f"run {self._run!r} has lost its aggregator, and run {others[0]!r} is led")
