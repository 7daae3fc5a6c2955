"""What a run is doing now, as one line: told by the broker's messages, over MQTT or in memory."""

from __future__ import annotations

import queue
import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from types import TracebackType
from typing import Self

from federation import topics
from federation.broker_address import BrokerAddress
from federation.condition import RunCondition, bare_reason, condition_of_run
from federation.errors import RemoteProtocolError
from federation.memory_transport import InMemoryBroker, InMemoryTransport
from federation.messages import NodeStatus, RoundPlan, RoundResult, RunState, UpdateManifest, parse
from federation.mqtt import MqttTransport
from federation.transport import Connected, Delivered, Transport, TransportEvent

NUM_ROUNDS_FOR_ESTIMATE = 5
"""The time left is so many last rounds' median times the rounds to come."""


@dataclass(slots=True, kw_only=True)
class LiveLine:
    """What is known of one run, and the line that says it. Pure: messages and the time in, text out."""

    run: str
    num_nodes: int
    _state: RunState | None = None
    _here: set[str] = field(default_factory=set)
    _sizes: dict[str, int] = field(default_factory=dict)
    """Node -> its images."""
    _cohorts: dict[int, tuple[str, ...]] = field(default_factory=dict)
    _updates: dict[int, dict[str, UpdateManifest]] = field(default_factory=lambda: defaultdict(dict))
    _results: dict[int, RoundResult] = field(default_factory=dict)
    _opened_at: dict[int, float] = field(default_factory=dict)

    def take(self, topic: str, payload: bytes, now: float) -> None:
        """Take in one message; what is not of the protocol or of this run is ignored.

        Args:
            topic: its topic.
            payload: its bytes; none where a retained message was cleared.
            now: seconds, on any clock that does not jump.
        """
        if not payload:
            return
        try:
            match topics.parse_topic(topic):
                case topics.StateTopic(run=self.run):
                    self._state = parse(RunState, payload)
                case topics.StatusTopic(run=self.run, node=node):
                    status = parse(NodeStatus, payload)
                    (self._here.add if status.online and not status.problem else self._here.discard)(node)
                    self._sizes[node] = status.num_examples
                case topics.PlanTopic(run=self.run, round_number=number):
                    self._cohorts[number] = tuple(parse(RoundPlan, payload).cohort)
                    self._opened_at.setdefault(number, now)
                case topics.UpdateManifestTopic(run=self.run, round_number=number, node=node):
                    self._updates[number][node] = parse(UpdateManifest, payload)
                case topics.ResultTopic(run=self.run, round_number=number):
                    self._results[number] = parse(RoundResult, payload)
        except RemoteProtocolError:
            return

    @property
    def is_known(self) -> bool:
        """Whether the run has said where it is."""
        return self._state is not None

    def text(self, now: float) -> str:
        """Return the line."""
        state = self._state
        if state is None:
            return "starting: the processes load, then each node its images"
        condition, scored = condition_of_run(state), self._accuracy()
        match condition:
            case RunCondition.WAITING:
                return f"waiting for nodes: {len(self._here)} of {self.num_nodes} are here{scored}"
            case RunCondition.PAUSED:
                reason = f" ({bare_reason(state)})" if bare_reason(state) else ""
                return f"paused after round {state.round_number} of {state.num_rounds}{reason}: `fedmq resume {self.run}` goes on{scored}"
            case RunCondition.FINISHED:
                return f"all {state.num_rounds} rounds done: the nodes take the final model{scored}"
            case RunCondition.STOPPED | RunCondition.FAILED:
                return f"{condition.word}: {bare_reason(state)}{scored}"
        return f"round {state.round_number} of {state.num_rounds}: {self._work(state.round_number)}{self._left(state, now)}{scored}"

    def _work(self, number: int) -> str:
        cohort, updates = self._cohorts.get(number, ()), self._updates[number]
        if not cohort:
            return "training"
        if len(updates) >= len(cohort):
            return "evaluating the new model"
        return f"training, {len(updates)} of {len(cohort)} updates in"

    def _left(self, state: RunState, now: float) -> str:
        number = state.round_number
        whole = self._round_seconds(number)
        if whole is None:
            return ""
        elapsed = max(0.0, now - self._opened_at.get(number, now))
        seconds = max(0.0, whole - elapsed) + whole * (state.num_rounds - number)
        return f", about {duration(seconds)} left"

    def _round_seconds(self, number: int) -> float | None:
        """Return how long a round takes: as the last ones did, or in the first as its first update says of the largest node."""
        done = [self._results[past].seconds for past in sorted(self._results) if past < number][-NUM_ROUNDS_FOR_ESTIMATE:]
        if done:
            return median(done)
        rates = [update.metrics.train_seconds / update.num_examples for update in self._updates[number].values()]
        sizes = [self._sizes.get(node, 0) for node in self._cohorts.get(number, ())]
        return max(rates) * max(sizes) if rates and sizes else None

    def _accuracy(self) -> str:
        scored = [result.evaluation.accuracy for _, result in sorted(self._results.items()) if result.evaluation]
        return f"; accuracy {scored[-1]:.4f}" if scored else ""


class LiveFeed:
    """Feeds a `LiveLine` from a broker; a context manager that leaves it again.

    Args:
        line: what is fed.
        connect: makes a transport that hands its events to what it is given.
        clock: what time it is, seconds.
    """

    def __init__(
        self, line: LiveLine, connect: Callable[[Callable[[TransportEvent], None]], Transport], clock: Callable[[], float]
    ) -> None:
        self.line = line
        self._inbox: queue.SimpleQueue[TransportEvent] = queue.SimpleQueue()
        self._transport = connect(self._inbox.put)
        self._clock = clock

    def __enter__(self) -> Self:
        self._transport.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._transport.stop(1.0)

    def text(self) -> str | None:
        """Take in what has come; return the line, None before the broker has told anything."""
        while not self._inbox.empty():
            match self._inbox.get():
                case Connected():
                    self._transport.subscribe(_filters(self.line.run))
                case Delivered(topic=topic, payload=payload):
                    self.line.take(topic, payload, self._clock())
                case _:
                    # It connects again by itself, and what is retained comes again.
                    continue
        return self.line.text(self._clock()) if self.line.is_known else None


def connect_to(address: BrokerAddress) -> Callable[[Callable[[TransportEvent], None]], Transport]:
    """Return what connects an onlooker to a broker."""

    def connect(on_event: Callable[[TransportEvent], None]) -> Transport:
        return MqttTransport(address, client_id=f"progress-{secrets.token_hex(4)}", on_event=on_event, session_expiry_seconds=0)

    return connect


def connect_in_memory(broker: InMemoryBroker) -> Callable[[Callable[[TransportEvent], None]], Transport]:
    """Return what connects an onlooker to a simulation's broker."""
    return lambda on_event: InMemoryTransport(broker, client_id="progress", on_event=on_event)


def duration(seconds: float) -> str:
    """Return a time as people say it: 12 s, 3 min, 1 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


_FOLLOWED = (topics.status_filter, topics.plan_filter, topics.update_manifest_filter, topics.result_filter)


def _filters(run: str) -> Sequence[str]:
    return [str(topics.StateTopic(run)), *(each(run) for each in _FOLLOWED)]
