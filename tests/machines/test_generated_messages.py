"""Whatever comes on whatever topic: no part ends, hangs or forgets its work, and the run of the honest nodes finishes.

`FEDMQ_GENERATED_MESSAGES=100000 scripts/test tests/machines/test_generated_messages.py` is the whole of it; without the variable a fixed,
small share is run.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import pytest

from aggregator.guard import Guard, Weighed
from aggregator.service import AggregatorService
from aggregator.telemetry import Telemetry
from edge_node.discovery import RunFinder
from edge_node.service import EdgeNodeService
from federation import topics
from federation.errors import RejectReason, RemoteProtocolError
from federation.memory_transport import InMemoryBroker, InMemoryTransport
from federation.messages import Control, Message, RoundPlan, RoundResult, RunState, parse
from federation.process import SYSTEM_CLOCK
from federation.transport import Connected, Delivered, TransportEvent
from tests.machines.federation_pair import FederationPair
from tests.machines.generated_messages import SENDER, messages
from tests.machines.test_federation import results

NUM_MESSAGES = int(os.environ.get("FEDMQ_GENERATED_MESSAGES", "3000"))
SEED = 20_261_124
WAIT_SECONDS = 60.0

OBEYED: Mapping[type[object], type[Message]] = {
    topics.StateTopic: RunState,
    topics.ControlTopic: Control,
    topics.PlanTopic: RoundPlan,
    topics.ResultTopic: RoundResult,
}
"""What only the aggregator's identity may publish: a valid one is an order, no attack."""


class Recorder(InMemoryTransport):
    """A transport that counts what is acknowledged."""

    num_acknowledged = 0

    def acknowledge(self, message: Delivered) -> None:  # noqa: ARG002
        """Count."""
        self.num_acknowledged += 1

    def forget_session(self) -> None:
        """Do nothing."""


class Parts:
    """Everything that listens, around one federation in its first round."""

    def __init__(self, folder: Path) -> None:
        self.pair = FederationPair(folder, num_rounds=2, quorum=0.6, min_nodes=3, deadline_seconds=1000.0)
        self.pair.start()
        self.pair.run(until=lambda: any(name.endswith("rounds/1/plan") for name in self.pair.broker.retained))
        broker = InMemoryBroker(max_packet_bytes=None)
        self._events: deque[TransportEvent] = deque()
        self.guard = Guard(Recorder(broker, client_id="guard", on_event=self._events.append), monotonic=lambda: 0.0)
        self.finder = RunFinder(self._transport(broker))
        self._feed: Callable[[TransportEvent], None] | None = None
        self.recorder = Recorder(broker, client_id="telemetry", on_event=self._events.append)
        self.telemetry = Telemetry(record=self.pair.aggregator_service.record, connect=self._connect, forwarder=None, clock=SYSTEM_CLOCK)
        self.telemetry.start()
        self.node = self.pair.seats["n0"].service
        assert isinstance(self.node, EdgeNodeService)

    def take(self, message: Delivered) -> None:
        """Hand every part a message."""
        if not message.topic.endswith(("/plan", "/result")):
            # Another's words on these make the aggregator publish its own again, and only its identity may write them.
            self.pair.aggregator_service.take(message)
        assert self.node is not None
        self.node.take(message)
        self.guard.take(message)
        self.guard.take(Weighed(message=message, num_bytes=len(message.payload)))
        if message.topic.endswith("/state"):
            self.finder.take(message)
        assert self._feed is not None
        self._feed(message)

    def _connect(self, on_event: Callable[[TransportEvent], None]) -> Recorder:
        self._feed = on_event
        on_event(Connected(session_present=False, max_packet_bytes=None))
        return self.recorder

    def _transport(self, broker: InMemoryBroker) -> InMemoryTransport:
        return InMemoryTransport(broker, client_id="part", on_event=self._events.append)


def is_order(topic: str, payload: bytes) -> bool:
    """Return whether a message is one that its reader has to follow."""
    try:
        kind = OBEYED.get(type(topics.parse_topic(topic)))
        if kind is not None:
            parse(kind, payload)
    except RemoteProtocolError:
        return False
    return kind is not None


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    made = Parts(tmp_path)
    yield made
    made.telemetry.stop(5.0, has_ended=False)


def test_every_topic_takes_whatever_comes(parts: Parts) -> None:
    num_fed = 0
    for topic, payload in islice(messages(SEED), NUM_MESSAGES):
        if is_order(topic, payload):
            continue
        parts.take(Delivered(topic=topic, payload=payload, retained=num_fed % 3 == 0))
        num_fed += 1
    assert num_fed > 0.9 * NUM_MESSAGES
    service = parts.pair.aggregator_service
    assert isinstance(service, AggregatorService)
    assert service.stopped is None
    assert parts.node is not None
    assert parts.node.stopped is None
    assert parts.guard.stopped is None
    # Telemetry has a thread of its own: it has taken every message.
    give_up_at = time.monotonic() + WAIT_SECONDS
    while parts.recorder.num_acknowledged < num_fed:
        assert time.monotonic() < give_up_at, f"telemetry took {parts.recorder.num_acknowledged} of {num_fed}"
        time.sleep(0.01)
    # Everything refused has a reason of ours, and none of them is "our own code failed over it".
    for counts in (service.record.rejections.counts, parts.guard.rejections.counts):
        assert set(counts) <= {str(reason) for reason in RejectReason} - {RejectReason.UNHANDLED}, counts
    named = {entry.node for entry in service.record.rejections.entries}
    assert SENDER in named
    parts.pair.run()
    outcomes = [(outcome.node, outcome.outcome, outcome.reason) for result in results(parts.pair) for outcome in result.outcomes]
    assert [result.aggregated for result in results(parts.pair)] == [True, True], outcomes
