"""A node's loop body: carries events from the transport to the participant and performs its effects."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias, assert_never

from edge_node.events import (
    AckReceived,
    Deploy,
    Deployed,
    Effect,
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
    TrainingFailed,
    TrainingFinished,
    UpdateLost,
    Upload,
)
from edge_node.participant import Participant
from edge_node.spool import Spool
from federation import topics
from federation.chunk_format import chunk_bytes_for, preferred_chunk_bytes
from federation.chunks import Assembly, ChunkedFile, parse_chunk
from federation.clock import Clock
from federation.codec import FileParams
from federation.errors import RejectReason, RemoteProtocolError, TrainingCancelled
from federation.messages import (
    MAX_PARAMS_BYTES,
    Ack,
    GlobalManifest,
    LocalMetrics,
    MetricPoint,
    MetricsReport,
    NodeStatus,
    RoundPlan,
    RunState,
    UpdateManifest,
    parse,
)
from federation.params import Params
from federation.rejections import Rejections
from federation.settings import ModelSettings
from federation.signing import Signer
from federation.transport import Connected, Delivered, Disconnected, Refused, Transport, TransportEvent

logger = logging.getLogger("edge_node")

MAX_FETCHED_CHUNKS = 64
"""Missing chunks asked for at a time: the rest when these have come, within every broker's queue limits."""

Item: TypeAlias = TransportEvent | Event
Job: TypeAlias = Callable[[], Event]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalUpdate:
    """What local training returns."""

    params: Params
    num_examples: int
    loss: float
    train_seconds: float
    samples_per_second: float
    validation_accuracy: float | None = None
    validation_loss: float | None = None
    validation_class_accuracy: Sequence[float] = ()


class Learner(Protocol):
    """Trains one update on this node's images."""

    def train(self, plan: RoundPlan, global_params: Params, should_stop: Callable[[], bool]) -> LocalUpdate:
        """Return the update.

        Raises:
            TrainingCancelled: `should_stop` returned true.
            FedMQError: the global model does not fit the plan, or training can't be done here.
        """
        ...


class Deployer(Protocol):
    """Makes a global model the device's own and measures it."""

    def deploy(self, *, run: str, round_number: int, model: ModelSettings, global_digest: str, params: Params) -> list[MetricPoint]:
        """Return what was measured; a model that can't be deployed is a point that says why."""
        ...


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
        self._learner = learner
        self._deployer = deployer
        self._status = status
        self._run = run
        self._background = background
        self._clock = clock
        self._signer = signer
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
        except RemoteProtocolError as error:
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
            assembly.discard()
            self._assembly = None
            return [FetchFailed(round_number=topic.round_number, detail=str(error))]

    def _assemble(self, assembly: Assembly, topic: topics.GlobalChunkTopic | topics.GlobalManifestTopic, payload: bytes) -> list[Event]:
        if isinstance(topic, topics.GlobalChunkTopic):
            assembly.add_chunk(parse_chunk(payload))
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
                self._background(lambda: self._train(effect.plan))
            case Deploy():
                self._background(lambda: self._deploy(effect))
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
        if self._assembly is not None:
            self._assembly.discard()
            self._assembly = None

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
        chunk_bytes = chunk_bytes_for(self._max_packet_bytes, preferred_chunk_bytes(path.stat().st_size))
        if self._update is None or self._update.sha256 != sha256 or self._update.chunk_bytes != chunk_bytes:
            self._update = ChunkedFile(path, chunk_bytes)
        return self._update if self._update.sha256 == sha256 else None

    # --- background job -------------------------------------------------------------------------

    def _train(self, plan: RoundPlan) -> Event:
        """Train and store one update; runs off the service's thread, touches only the spool and the learner."""
        round_number = plan.round_number
        stored = self._spool.stored_update(round_number)
        if stored is not None and stored.base_digest == plan.global_digest:
            return TrainingFinished(round_number=round_number, base_digest=plan.global_digest, is_old=True)
        try:
            self._spool.check_space(2 * plan.global_bytes)
            params = FileParams(self._spool.global_path(round_number), None)
            update = self._learner.train(plan, params, lambda: self._participant.round_number != round_number)
            metrics = LocalMetrics(
                loss=update.loss,
                download_seconds=self._download_seconds,
                train_seconds=update.train_seconds,
                samples_per_second=update.samples_per_second,
                validation_accuracy=update.validation_accuracy,
                validation_loss=update.validation_loss,
                validation_class_accuracy=list(update.validation_class_accuracy),
            )
            self._spool.store_update(
                round_number, update.params, base_digest=plan.global_digest, num_examples=update.num_examples, metrics=metrics
            )
            figures = metrics.model_dump(exclude={"validation_class_accuracy"}, exclude_none=True)
            self._publish_metrics(round_number, [MetricPoint(measurement="train", time_ns=self._clock.time_ns(), fields=figures)])
        except TrainingCancelled:
            return TrainingFailed(round_number=round_number, detail="cancelled: the round is over")
        except Exception as error:  # whatever it is, this node sits the round out and says why
            if self._participant.round_number != round_number:
                # Its files went with the round it was for.
                return TrainingFailed(round_number=round_number, detail="cancelled: the round is over")
            logger.exception("round=%d training=failed", round_number)
            return TrainingFailed(round_number=round_number, detail=f"{type(error).__name__}: {error}"[:400])
        return TrainingFinished(round_number=round_number, base_digest=plan.global_digest)

    def _deploy(self, effect: Deploy) -> Event:
        path = self._spool.global_path(effect.round_number)
        if self._deployer is not None and path.exists():
            try:
                params = dict(FileParams(path, None).items())
                points = self._deployer.deploy(
                    run=self._run,
                    round_number=effect.round_number,
                    model=effect.model,
                    global_digest=effect.global_digest,
                    params=params,
                )
                self._publish_metrics(effect.round_number, points)
            except Exception:  # a device without its own model still trains
                logger.exception("round=%d deploy=failed", effect.round_number)
        return Deployed(round_number=effect.round_number)

    def _publish_metrics(self, round_number: int, points: list[MetricPoint]) -> None:
        report = MetricsReport(node=self._status.node, round_number=round_number, points=points)
        self._transport.publish(str(topics.MetricsTopic(self._run, self._status.node)), report.to_payload())


def will_payload(status: NodeStatus) -> bytes:
    """Return the payload that says a node is offline."""
    return NodeStatus(node=status.node, online=False, instance=status.instance).to_payload()
