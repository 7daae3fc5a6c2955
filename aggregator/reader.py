"""Turns what the broker delivers into events: every payload is validated here, before anything is decided by it."""

from __future__ import annotations

from collections.abc import Callable

from aggregator.events import ControlSeen, Event, ForeignMessage, NodeReported, StateSeen, UpdateProgressed
from aggregator.publisher import Publisher
from aggregator.record import RunRecord
from aggregator.round_keeper import RoundKeeper
from aggregator.updates import UpdateCollector
from federation import topics
from federation.errors import RejectReason, RemoteProtocolError
from federation.messages import Control, MetricsReport, NodeStatus, RunState, parse
from federation.transport import Delivered


class MessageReader:
    """Reads one run's messages.

    Args:
        run: the run's name.
        expects: whether bytes of (node, round)'s update are still worth storing.
        collector: stores chunks and manifests.
        record: takes the nodes' figures.
        publisher: knows what this aggregator itself has said.
        keeper: is told of results and of leftovers of cleared rounds; None where rounds are not kept.
    """

    def __init__(
        self,
        *,
        run: str,
        expects: Callable[[str, int], bool],
        collector: UpdateCollector,
        record: RunRecord,
        publisher: Publisher,
        keeper: RoundKeeper | None,
    ) -> None:
        self._run = run
        self._expects = expects
        self._collector = collector
        self._record = record
        self._publisher = publisher
        self._keeper = keeper

    def read(self, message: Delivered) -> list[Event]:
        """Return what a message means.

        Raises:
            RemoteProtocolError: it is nothing that its topic may hold.
            OSError: a chunk could not be stored.
        """
        if not message.payload:
            return []  # a retained message was cleared
        if self._keeper is not None and self._keeper.take_leftover(message.topic, message.payload):
            return []
        topic = topics.parse_topic(message.topic)
        if topic.run != self._run:
            raise RemoteProtocolError(f"topic of run {topic.run!r}", reason=RejectReason.UNKNOWN_TOPIC)
        match topic:
            case topics.UpdateChunkTopic():
                return self._read_chunk(topic, message.payload)
            case topics.UpdateManifestTopic():
                return self._read_manifest(topic, message.payload)
            case topics.StatusTopic():
                status = parse(NodeStatus, message.payload)
                if status.node != topic.node:
                    raise RemoteProtocolError(f"status of {status.node!r}", reason=RejectReason.INVALID_MESSAGE)
                return [NodeReported(status=status, retained=message.retained)]
            case topics.MetricsTopic():
                self._record.add_metrics(topic.node, parse(MetricsReport, message.payload))
                return []
            case topics.ControlTopic():
                return [ControlSeen(control=parse(Control, message.payload))]
            case topics.PlanTopic() | topics.ResultTopic():
                return self._read_own(topic, message)
            case topics.StateTopic():
                return [StateSeen(state=parse(RunState, message.payload), retained=message.retained)]
        raise RemoteProtocolError(f"nobody asked for {message.topic!r}", reason=RejectReason.UNKNOWN_TOPIC)

    def _read_chunk(self, topic: topics.UpdateChunkTopic, payload: bytes) -> list[Event]:
        if not self._expects(topic.node, topic.round_number):
            return []
        progress = UpdateProgressed(round_number=topic.round_number, node=topic.node, num_bytes=len(payload))
        return [progress, *self._collector.add_chunk(topic.node, topic.index, payload)]

    def _read_manifest(self, topic: topics.UpdateManifestTopic, payload: bytes) -> list[Event]:
        progress = UpdateProgressed(round_number=topic.round_number, node=topic.node, num_bytes=len(payload))
        if self._expects(topic.node, topic.round_number):
            return [progress, *self._collector.add_manifest(topic.node, payload)]
        # Too late, twice, or from outside the cohort: the coordinator answers by the digest alone.
        return [self._collector.describe(topic.node, topic.round_number, payload)]

    def _read_own(self, topic: topics.PlanTopic | topics.ResultTopic, message: Delivered) -> list[Event]:
        """Read what only an aggregator writes: what this one did not write is another's."""
        if self._keeper is not None and isinstance(topic, topics.ResultTopic):
            self._keeper.take_result(topic.round_number, message.payload)
        is_foreign = not message.retained and self._publisher.is_foreign(message.topic, message.payload)
        return [ForeignMessage(round_number=topic.round_number)] if is_foreign else []
