"""A node's loop body: carries events from the transport to the participant and performs its effects."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeAlias, assert_never

from edge_node.events import (
    AckReceived,
    Deploy,
    DiskFailed,
    Effect,
    EffectFailed,
    Event,
    FetchFailed,
    FetchMissing,
    FollowRound,
    FollowRun,
    GlobalCompleted,
    GlobalProgressed,
    LeaveRound,
    Note,
    Offer,
    PlanReceived,
    PublishStatus,
    SessionOpened,
    StateReceived,
    Stop,
    Train,
    UpdateLost,
    Upload,
)
from edge_node.participant import Participant
from edge_node.spool import Spool
from edge_node.work import Deployer, Learner, RoundWork
from federation import topics
from federation.chunk_format import chunk_bytes_for, preferred_chunk_bytes
from federation.chunks import Assembly, ChunkedFile, parse_chunk
from federation.clock import Clock
from federation.errors import FedMQError, LocalProtocolError, RejectReason, RemoteProtocolError
from federation.messages import (
    MAX_PARAMS_BYTES,
    Ack,
    GlobalManifest,
    MetricPoint,
    MetricsReport,
    NodeStatus,
    RoundPlan,
    RunState,
    UpdateManifest,
    parse,
)
from federation.rejections import Rejections
from federation.signing import Signer
from federation.transport import Connected, Delivered, Disconnected, Refused, Transport, TransportEvent

logger = logging.getLogger("edge_node")

MAX_FETCHED_CHUNKS = 64
"""Missing chunks asked for at a time: the rest when these have come, within every broker's queue limits."""

Item: TypeAlias = TransportEvent | Event
Job: TypeAlias = Callable[[], Event]


class EdgeNodeService:
    """Performs what the participant decides.

    Args:
        participant: the machine.
        transport: not yet started; its events are handed to `take`.
        spool: the node's folder.
        learner: trains updates.
        deployer: makes each global model the device's own; None leaves it out.
        status: what this node is; `problem` is filled in here.
        run: the run's name.
        background: runs a job elsewhere and hands its event to `take` later, on the service's thread.
        clock: what time it is.
        signer: signs update manifests; None publishes them unsigned.
    """

    def __init__(
        self,
        *,
        participant: Participant,
        transport: Transport,
        spool: Spool,
        learner: Learner,
        deployer: Deployer | None,
        status: NodeStatus,
        run: str,
        background: Callable[[Job], None],
        clock: Clock,
        signer: Signer | None = None,
    ) -> None:
        self._participant = participant
        self._transport = transport
        self._spool = spool
        self._status = status
        self._run = run
        self._background = background
        self._clock = clock
        self._signer = signer
        self._work = RoundWork(
            learner=learner,
            deployer=deployer,
            spool=spool,
            node=status.node,
            known=status.capabilities,
            run=run,
            followed_round=lambda: participant.round_number if self.stopped is None else None,
            publish=self._publish_metrics,
            clock=clock,
        )
        self._max_packet_bytes: int | None = None
        self._assembly: Assembly | None = None
        self._manifest: GlobalManifest | None = None
        self._update: ChunkedFile | None = None
        self._plan_received_at = 0.0
        self._download_seconds = 0.0
        self._extra_filters: list[str] = []
        self.rejections = Rejections(logger)
        self.stopped: Stop | Refused | None = None

    @property
    def wake_at(self) -> float | None:
        """When `TimePassed` is due, on the monotonic clock."""
        return self._participant.wake_at

    def take(self, item: Item) -> None:
        """Take in one event, from the transport, from a background job or from the clock."""
        try:
            self._take(item)
        except OSError as error:
            # A restart would meet the same disk: this node stays, says so, and takes part once the disk does.
            logger.error("run=%s disk=failed reason=%r", self._run, str(error))  # noqa: TRY400 - a sentence, not a bug
            self._handle(DiskFailed(detail=str(error)))
        except FedMQError as error:
            # What the round asks for can't be done here, a broker's packets are too small for it perhaps: the sentence says so.
            logger.error("run=%s effect=failed reason=%r", self._run, str(error))  # noqa: TRY400 - a sentence, not a bug
            self._handle(EffectFailed(detail=str(error)))

    def _take(self, item: Item) -> None:
        match item:
            case Connected():
                self._max_packet_bytes = item.max_packet_bytes
                logger.info("broker=connected session_present=%s", item.session_present)
                self._handle(SessionOpened(session_present=item.session_present))
            case Disconnected():
                logger.warning("broker=disconnected reason=%r", item.reason)
            case Refused():
                logger.error("broker=refused reason=%r", item.reason)
                self.stopped = item
            case Delivered():
                self._on_delivered(item)
            case _:
                self._handle(item)

    def offline_status(self) -> tuple[str, bytes]:
        """Return topic and payload that say this node has left: its will, and its last word."""
        return str(topics.StatusTopic(self._run, self._status.node)), will_payload(self._status)

    # --- events in ------------------------------------------------------------------------------

    def _on_delivered(self, message: Delivered) -> None:
        try:
            for event in self._read(message):
                self._handle(event)
        except OSError:
            raise
        except Exception as error:  # the boundary: a message that finds a bug in here is one more that can't be used
            if isinstance(error, FedMQError) and not isinstance(error, RemoteProtocolError):
                raise
            self.rejections.add(message.topic, error)

    def _read(self, message: Delivered) -> list[Event]:
        if not message.payload:
            return []  # a retained message was cleared
        topic = topics.parse_topic(message.topic)
        match topic:
            case topics.StateTopic(run=self._run):
                return [StateReceived(state=parse(RunState, message.payload))]
            case topics.PlanTopic(run=self._run):
                return self._read_plan(topic, message.payload)
            case topics.GlobalChunkTopic(run=self._run) | topics.GlobalManifestTopic(run=self._run):
                return self._read_global(topic, message.payload)
            case topics.AckTopic(run=self._run, node=self._status.node):
                ack = parse(Ack, message.payload)
                if (ack.node, ack.round_number) != (topic.node, topic.round_number):
                    raise RemoteProtocolError("ack of another node or round", reason=RejectReason.INVALID_MESSAGE)
                return [AckReceived(ack=ack)]
        raise RemoteProtocolError(f"nobody asked for {message.topic!r}", reason=RejectReason.UNKNOWN_TOPIC)

    def _read_plan(self, topic: topics.PlanTopic, payload: bytes) -> list[Event]:
        plan = parse(RoundPlan, payload)
        if plan.round_number != topic.round_number or plan.run != self._run:
            raise RemoteProtocolError("plan of another round or run", reason=RejectReason.FOREIGN_ROUND)
        self._plan_received_at = self._clock.monotonic()
        return [PlanReceived(plan=plan)]

    def _read_global(self, topic: topics.GlobalChunkTopic | topics.GlobalManifestTopic, payload: bytes) -> list[Event]:
        assembly = self._assembly
        if assembly is None or topic.round_number != self._participant.round_number:
            return []
        try:
            return self._assemble(assembly, topic, payload)
        except OSError as error:
            self._drop_assembly()
            return [FetchFailed(round_number=topic.round_number, detail=str(error))]

    def _assemble(self, assembly: Assembly, topic: topics.GlobalChunkTopic | topics.GlobalManifestTopic, payload: bytes) -> list[Event]:
        if isinstance(topic, topics.GlobalChunkTopic):
            assembly.add_chunk(parse_chunk(payload, topic.index))
        else:
            manifest = parse(GlobalManifest, payload)
            if manifest.round_number != topic.round_number or manifest.run != self._run:
                raise RemoteProtocolError("manifest of another round or run", reason=RejectReason.FOREIGN_ROUND)
            assembly.set_manifest(manifest)
            self._manifest = manifest
        progress = GlobalProgressed(round_number=topic.round_number)
        if self._manifest is None or not assembly.is_complete:
            return [progress]
        digest = self._manifest.sha256
        assembly.finish().replace(self._spool.global_path(topic.round_number))
        self._assembly = None
        self._download_seconds = max(0.0, self._clock.monotonic() - self._plan_received_at) if self._plan_received_at else 0.0
        return [progress, GlobalCompleted(round_number=topic.round_number, digest=digest)]

    def _handle(self, event: Event) -> None:
        for effect in self._participant.handle(event, self._clock.monotonic()):
            self._perform(effect)

    # --- effects out ----------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        match effect:
            case FollowRun():
                self._transport.subscribe([str(topics.StateTopic(self._run))])
            case FollowRound():
                self._follow_round(effect.round_number)
            case LeaveRound():
                self._leave_round(effect.round_number)
            case PublishStatus():
                status = self._status.model_copy(update={"online": True, "problem": self._status.problem or effect.problem})
                self._transport.publish(str(topics.StatusTopic(self._run, status.node)), status.to_payload(), retain=True)
            case FetchMissing():
                self._fetch_missing(effect.round_number)
            case Train():
                self._background(lambda: self._work.train(effect.plan, download_seconds=self._download_seconds))
            case Deploy():
                self._background(lambda: self._work.deploy(effect))
            case Upload():
                self._upload(effect.round_number, effect.missing)
            case Offer():
                self._upload(effect.round_number, ())
            case Note():
                logger.log(logging.WARNING if effect.warning else logging.INFO, "%s", effect.text)
            case Stop():
                self.stopped = effect
            case _:
                assert_never(effect)

    def _follow_round(self, round_number: int) -> None:
        filters = topics.node_round_filters(self._run, round_number, self._status.node)
        try:
            folder = self._spool.enter(round_number)
            digest = self._spool.stored_global(round_number)
        except OSError as error:
            self._handle(FetchFailed(round_number=round_number, detail=str(error)))
            return
        if digest is not None:
            # An earlier process fetched it: only plan and acks are news.
            own = topics.global_prefix(self._run, round_number)
            self._transport.subscribe([name for name in filters if not name.startswith(own)])
            self._handle(GlobalCompleted(round_number=round_number, digest=digest))
            return
        if self._assembly is None:
            self._manifest = None
            self._assembly = Assembly(folder / "global.part", expected_bytes=None, max_bytes=MAX_PARAMS_BYTES)
        self._transport.subscribe(filters)

    def _leave_round(self, round_number: int) -> None:
        filters = topics.node_round_filters(self._run, round_number, self._status.node)
        self._transport.unsubscribe([*filters, *self._extra_filters])
        self._transport.drop_pending(topics.update_prefix(self._run, round_number, self._status.node))
        self._extra_filters.clear()
        self._update = None
        self._plan_received_at = 0.0
        self._drop_assembly()

    def _drop_assembly(self) -> None:
        """Forget what has come of a global model; what a failing disk keeps of it goes with the round's folder."""
        assembly, self._assembly = self._assembly, None
        if assembly is not None:
            with suppress(OSError):
                assembly.discard()

    def _fetch_missing(self, round_number: int) -> None:
        if self._assembly is None:
            # The stored one is not the plan's, damaged by a power cut perhaps; or there was no room for it.
            self._spool.forget_global(round_number)
            self._follow_round(round_number)
            return
        if self._manifest is None:
            self._transport.subscribe([str(topics.GlobalManifestTopic(self._run, round_number))])
            return
        missing = self._assembly.missing()[:MAX_FETCHED_CHUNKS]
        logger.info("round=%d global=incomplete missing=%d", round_number, len(missing))
        # Subscribing to a chunk's own topic makes the broker send just that retained message again.
        filters = [str(topics.GlobalChunkTopic(self._run, round_number, index)) for index in missing]
        self._extra_filters = sorted({*self._extra_filters, *filters})
        self._transport.subscribe(filters)

    def _upload(self, round_number: int, missing: tuple[int, ...] | None) -> None:
        """Publish chunks of the stored update (None: all of them), then its manifest as the commit mark."""
        facts = self._spool.stored_update(round_number)
        source = None if facts is None else self._source(round_number, facts.sha256)
        if facts is None or source is None:
            self._spool.forget_update(round_number)
            self._handle(UpdateLost(round_number=round_number))
            return
        node = self._status.node
        self._transport.drop_pending(topics.update_prefix(self._run, round_number, node))
        for index in range(source.num_chunks) if missing is None else missing:
            if index >= source.num_chunks:
                continue
            topic = topics.UpdateChunkTopic(self._run, round_number, node, index)
            self._transport.publish(str(topic), partial(source.payload, index), retain=True)
        manifest = UpdateManifest(
            run=self._run,
            round_number=round_number,
            node=node,
            total_bytes=source.total_bytes,
            chunk_bytes=source.chunk_bytes,
            sha256=source.sha256,
            chunk_sha256=list(source.chunk_sha256),
            base_digest=facts.base_digest,
            num_examples=facts.num_examples,
            metrics=facts.metrics,
        )
        if self._signer is not None:
            manifest = self._signer.sign(manifest)
        self._transport.publish(str(topics.UpdateManifestTopic(self._run, round_number, node)), manifest.to_payload(), retain=True)

    def _source(self, round_number: int, sha256: str) -> ChunkedFile | None:
        """Return the stored update as a transfer; None when its file is not what was stored."""
        path = self._spool.update_path(round_number)
        try:
            chunk_bytes = chunk_bytes_for(self._max_packet_bytes, preferred_chunk_bytes(path.stat().st_size))
            if self._update is None or self._update.sha256 != sha256 or self._update.chunk_bytes != chunk_bytes:
                self._update = ChunkedFile(path, chunk_bytes)
        except (OSError, LocalProtocolError) as error:
            # Gone, unreadable, or of no bytes: a power cut leaves a name without content.
            logger.warning("round=%d update=unreadable reason=%r", round_number, str(error))
            self._update = None
            return None
        return self._update if self._update.sha256 == sha256 else None

    def _publish_metrics(self, round_number: int, points: list[MetricPoint]) -> None:
        report = MetricsReport(node=self._status.node, round_number=round_number, points=points)
        self._transport.publish(str(topics.MetricsTopic(self._run, self._status.node)), report.to_payload())


def will_payload(status: NodeStatus) -> bytes:
    """Return the payload that says a node is offline."""
    return NodeStatus(node=status.node, online=False, instance=status.instance).to_payload()
