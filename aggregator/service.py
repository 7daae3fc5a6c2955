"""The aggregator's loop body: carries events from the transport to the coordinator and performs its effects."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, assert_never

from aggregator.checkpoint import CheckpointStore
from aggregator.coordinator import CHECK_SECONDS, Coordinator
from aggregator.events import (
    Aggregate,
    AggregationFinished,
    AggregationRefused,
    CheckBegun,
    CheckRounds,
    ClearControl,
    Effect,
    Evaluate,
    EvaluationFinished,
    Event,
    FollowRound,
    FollowRun,
    LeaveRound,
    Note,
    PublishFinal,
    PublishResult,
    PublishRound,
    PublishState,
    RequestMissing,
    RestoreUpdate,
    SaveCheckpoint,
    SendAck,
    SessionOpened,
    Stop,
    UpdateRefused,
    WorkFailed,
)
from aggregator.probation import try_updates
from aggregator.protection import protect
from aggregator.publisher import Publisher
from aggregator.reader import MessageReader
from aggregator.record import RunRecord
from aggregator.round_keeper import RoundKeeper, RoundsArchived
from aggregator.setback import leave_out_culprits, unexplained
from aggregator.updates import UpdateCollector
from federation import topics
from federation.clock import Clock
from federation.codec import sync
from federation.errors import CodecError, FedMQError, FencedError, RejectReason, RemoteProtocolError
from federation.learning.algorithms import Update
from federation.learning.exchange import Exchange
from federation.learning.sets import MODEL, Sets, TensorSet
from federation.messages import Evaluation, MetricPoint, RoundResult
from federation.params import FiniteParams, Params
from federation.transport import Connected, Delivered, Disconnected, Refused, Transport, TransportEvent

logger = logging.getLogger("aggregator")

_SUPERSEDED = "another aggregator leads this run, by its checkpoint"

REPORT_SECONDS = 10.0
"""Between two reports of what could not be used: a node gone mad must not make us as loud as it is."""

_OF_ONE_NODE = (Note, SendAck, RequestMissing, RestoreUpdate)
"""Effects that concern one node alone: where one fails, the run goes on without it."""

LOOK_SECONDS = 0.2
"""How often is looked whether all publishes have reached the broker after a reconnection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalMeasured:
    """A global model's ONNX figures are there to be recorded."""

    round_number: int
    points: list[MetricPoint]


Measure: TypeAlias = Callable[[int, str, Params], list[MetricPoint]]
"""(round the model begins, its digest, the model) -> its ONNX figures. Never raises."""

Item: TypeAlias = TransportEvent | Event | RoundsArchived | GlobalMeasured
Job: TypeAlias = Callable[[], Event]


class _EffectFailedError(Exception):
    """What the run needs could not be done; its cause says why. No message is to blame."""


class AggregatorService:
    """Performs what the coordinator decides.

    Args:
        coordinator: the machine.
        transport: not yet started; its events are handed to `take`.
        store: where position and models are kept.
        collector: where updates are collected.
        record: the run's folder.
        exchange: the method, and how its sets travel.
        initial: the network from the run's seed.
        measure: measures a global model as ONNX, beside the next round; None leaves it out.
        evaluate: evaluates a global model on the test set; None results are published as such.
        background: runs a job elsewhere and hands its event to `take` later, on the service's thread.
        aside: likewise, for jobs that no round waits for.
        keeper: archives finished rounds and bounds what they take on the broker; None leaves them all there.
        clock: what time it is.
    """

    def __init__(
        self,
        *,
        coordinator: Coordinator,
        transport: Transport,
        store: CheckpointStore,
        collector: UpdateCollector,
        record: RunRecord,
        exchange: Exchange,
        initial: TensorSet,
        evaluate: Callable[[Params], Evaluation | None],
        measure: Measure | None,
        background: Callable[[Job], None],
        aside: Callable[[Callable[[], Any]], None],
        keeper: RoundKeeper | None,
        run: str,
        clock: Clock,
    ) -> None:
        self._coordinator = coordinator
        self._transport = transport
        self._store = store
        self._collector = collector
        self._record = record
        self._exchange = exchange
        self._protection = record.settings.protection
        self._initial = initial
        self._evaluate = evaluate
        self._measure = measure
        self._last_measurement: Callable[[], GlobalMeasured] | None = None
        self._background = background
        self._run = run
        self._clock = clock
        self._publisher = Publisher(run=run, transport=transport, store=store)
        self._keeper = keeper
        if keeper is not None:
            keeper.spoken = self._publisher.note_spoken
        self._reader = MessageReader(
            run=run, expects=coordinator.expects, collector=collector, record=record, publisher=self._publisher, keeper=keeper
        )
        self._aside = aside
        self._unrecorded: RoundResult | None = None
        self._look_at: float | None = None
        self._check_ends_at: float | None = None
        self._num_reported = 0
        self._report_at = 0.0
        self.stopped: Stop | None = None

    @property
    def record(self) -> RunRecord:
        """The run's folder."""
        return self._record

    @property
    def is_superseded(self) -> bool:
        """Whether another process leads this run, by the disk they share or by the broker; from any thread."""
        return (self.stopped is not None and self.stopped.is_fenced) or self._is_superseded()

    @property
    def wake_at(self) -> float | None:
        """When `TimePassed` is due, on the monotonic clock."""
        report_at = self._report_at if self._record.rejections.num_total != self._num_reported else None
        times = (self._coordinator.wake_at, self._look_at, self._check_ends_at, report_at)
        return min((time for time in times if time is not None), default=None)

    def take(self, item: Item) -> None:
        """Take in one event, from the transport, from a background job or from the clock."""
        try:
            self._take(item)
        except FencedError as error:
            self._give_way(error)
        except OSError as error:
            if self._is_superseded():
                # A successor on the same disk takes this one's files away.
                self._give_way(FencedError(_SUPERSEDED))
                return
            is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            logger.log(logging.ERROR, "run=%s disk=failed reason=%r", self._run, str(error), exc_info=not is_full)
            # What the broker holds stays as it is: whoever resumes the run goes on in this round.
            self.stopped = Stop(reason=f"the disk failed ({error}): make room or mend it, then continue with --resume", failed=True)
        except _EffectFailedError as failed:
            cause = failed.__cause__
            is_known = isinstance(cause, FedMQError)
            logger.error("run=%s effect=%s failed", self._run, failed, exc_info=None if is_known else cause)  # noqa: TRY400 - the cause's
            text = str(cause) if is_known else f"{type(cause).__name__}: {cause}"
            self.stopped = Stop(reason=f"{failed} failed: {text}; mend it, then continue with --resume"[:500], failed=True)

    def _take(self, item: Item) -> None:
        match item:
            case Connected():
                self._publisher.max_packet_bytes = item.max_packet_bytes
                logger.info("broker=connected session_present=%s max_packet_bytes=%s", item.session_present, item.max_packet_bytes)
                self._handle(SessionOpened(session_present=item.session_present))
                # A broker that kept our session may still have lost what it was given since its last snapshot.
                self._look_at = self._clock.monotonic() if item.session_present else None
            case Disconnected():
                logger.warning("broker=disconnected reason=%r", item.reason)
            case Refused():
                self.stopped = Stop(reason=item.reason, failed=True)
            case Delivered():
                self._on_delivered(item)
            case GlobalMeasured():
                self._record.add_own_metrics(item.points, item.round_number)
            case WorkFailed() if self._is_superseded():
                raise FencedError(_SUPERSEDED)
            case RoundsArchived():
                self._check_leadership()
                if self._keeper is not None:
                    self._keeper.take_archived()
            case _:
                self._handle(item)
        self._look_after_broker()
        self._report_rejections()

    def _look_after_broker(self) -> None:
        """After each new connection, once all is published: look whether the broker still has what it was given."""
        now = self._clock.monotonic()
        if self._keeper is not None and not self._transport.num_pending:
            self._keeper.settle()
        if self._look_at is not None and now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            if not self._transport.num_pending:
                self._look_at = None
                self._transport.subscribe([str(topics.StateTopic(self._run))])
                self._handle(CheckBegun())
        if self._check_ends_at is not None and now >= self._check_ends_at:
            self._check_ends_at = None
            if self._keeper is not None:
                self._keeper.finish_check(before_round=self._coordinator.num_finished + 1)

    # --- events in ------------------------------------------------------------------------------

    def _on_delivered(self, message: Delivered) -> None:
        """Take in one message: whatever it is, only the disk, our own work or a successor ends the process over it."""
        try:
            for event in self._reader.read(message):
                self._handle(event)
        except (OSError, FencedError, _EffectFailedError):
            raise
        except Exception as error:  # noqa: BLE001 - the boundary: a message that finds a bug in here is one more that can't be used
            self._record.rejections.add(message.topic, error)
            if not isinstance(error, RemoteProtocolError):
                self._let_go(message.topic, f"{type(error).__name__}: {error}"[:200])

    def _let_go(self, topic: str, detail: str) -> None:
        """Undo what a message that failed half way may have left: neither its node nor its update counts any more."""
        try:
            parsed: topics.Topic | None = topics.parse_topic(topic)
        except RemoteProtocolError:
            parsed = None
        match parsed:
            case topics.StatusTopic(node=node):
                self._coordinator.forget(node)
            case topics.UpdateChunkTopic(round_number=number, node=node) | topics.UpdateManifestTopic(round_number=number, node=node):
                reason = RejectReason.UNHANDLED
                self._handle(UpdateRefused(round_number=number, node=node, sha256=None, reason=reason, detail=detail))
            case _:
                return

    def _report_rejections(self) -> None:
        now, num_total = self._clock.monotonic(), self._record.rejections.num_total
        if num_total != self._num_reported and now >= self._report_at:
            self._num_reported, self._report_at = num_total, now + REPORT_SECONDS
            self._publisher.rejections(self._record.rejections.entries)

    def _is_superseded(self) -> bool:
        return self._store.leading_epoch() > self._coordinator.position.epoch

    def _check_leadership(self) -> None:
        """Raise if another process has led this run since, by the disk they share: the broker may not have told us yet."""
        if self._is_superseded():
            raise FencedError(_SUPERSEDED)

    def _give_way(self, error: FencedError) -> None:
        logger.error("run=%s fenced reason=%r", self._run, str(error))
        self.stopped = Stop(reason=str(error), failed=True, is_fenced=True)

    def _handle(self, event: Event) -> None:
        for effect in self._coordinator.handle(event, self._clock.monotonic()):
            try:
                self._perform(effect)
            except (OSError, FencedError, _EffectFailedError):
                raise
            except Exception as error:
                if not isinstance(effect, _OF_ONE_NODE):
                    raise _EffectFailedError(type(effect).__name__) from error
                topic = topics.AckTopic(self._run, self._coordinator.position.round_number, getattr(effect, "node", "-"))
                self._record.rejections.add(str(topic), error)

    # --- effects out ----------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        match effect:
            case FollowRun():
                run = self._run
                metrics = [topics.metrics_filter(run)] if self._record.takes_metrics else []
                control = str(topics.ControlTopic(run))
                # Our own plans and results: so that we notice when somebody else writes them.
                spoken = [topics.plan_filter(run), topics.result_filter(run)]
                self._transport.subscribe([str(topics.StateTopic(run)), control, topics.status_filter(run), *metrics, *spoken])
            case FollowRound():
                if not effect.is_again:
                    self._collector.open(effect.round_number, self._coordinator.position.global_digest)
                    self._publisher.begin_round(effect.round_number)
                self._transport.subscribe(topics.update_filters(self._run, effect.round_number))
            case LeaveRound():
                self._transport.unsubscribe(topics.update_filters(self._run, effect.round_number))
                self._transport.drop_pending(topics.global_prefix(self._run, effect.round_number))
            case PublishState():
                self._publisher.state(effect.state)
            case PublishRound():
                self._transport.drop_pending(topics.global_prefix(self._run, effect.plan.round_number))
                self._publisher.round(effect.plan)
                self._record.note_awaited(self._coordinator.awaited())
            case CheckRounds():
                if self._keeper is not None:
                    self._keeper.begin_check(effect.suspects)
                    self._aside(self._keeper.archive_staged)
                    self._check_ends_at = self._clock.monotonic() + CHECK_SECONDS
            case ClearControl():
                self._publisher.clear_control()
            case PublishFinal():
                self._publisher.global_model(effect.round_number, effect.global_digest)
            case SendAck():
                self._publisher.ack(effect, epoch=self._coordinator.position.epoch)
                self._record.note_awaited(self._coordinator.awaited())
            case RestoreUpdate():
                self._publisher.restore_update(effect, *self._collector.record(effect.node))
            case RequestMissing():
                sha256, missing = self._collector.missing(effect.node)
                epoch = self._coordinator.position.epoch
                self._publisher.request(effect.round_number, effect.node, epoch=epoch, sha256=sha256, missing=missing)
            case Aggregate():
                self._background(lambda: self._guard(lambda: self._aggregate(effect)))
            case Evaluate():
                self._record.note_evaluating()
                self._background(lambda: self._guard(lambda: self._evaluate_global(effect)))
            case PublishResult():
                self._check_leadership()
                self._publish_result(effect.result)
            case SaveCheckpoint():
                self._check_leadership()
                self._store.save(effect.position, now_ns=self._clock.time_ns())
                self._record_result()
            case Note():
                logger.log(logging.WARNING if effect.warning else logging.INFO, "%s", effect.text)
            case Stop():
                self._stop(effect)
            case _:
                assert_never(effect)

    def _record_result(self) -> None:
        """Record the round that has ended, once the checkpoint says so: one that a crash before has led again has one record, too."""
        result, self._unrecorded = self._unrecorded, None
        if result is not None:
            self._record.add_result(result, result.ended_ns or self._clock.time_ns())

    def _publish_result(self, result: RoundResult) -> None:
        self._publisher.result(result)
        self._stage(result)
        self._unrecorded = result
        self._measure_global(result)
        evaluation = result.evaluation
        logger.info(
            "round=%d accuracy=%s loss=%s accepted=%d rejected=%d discarded=%d seconds=%.3f global=%s",
            result.round_number,
            f"{evaluation.accuracy:.4f}" if evaluation else "-",
            f"{evaluation.loss:.4f}" if evaluation else "-",
            result.accepted,
            result.rejected,
            result.discarded,
            result.seconds,
            result.next_global_digest[:12],
        )

    def _measure_global(self, result: RoundResult) -> None:
        """Have a new global model measured aside: the next round does not wait for it."""
        measure = self._measure
        if measure is None or not result.aggregated:
            return
        round_number, digest = result.round_number + 1, result.next_global_digest
        model = self._whole_model(digest)
        if model is None:
            return
        # Read now: the next round's checkpoint forgets this model's file once it has a newer one.
        params = dict(model)

        def job() -> GlobalMeasured:
            return GlobalMeasured(round_number=round_number, points=measure(round_number, digest, params))

        if result.round_number < self._record.settings.num_rounds:
            self._aside(job)
        else:
            # No next round to hide it behind: done while the final model is on its way to the nodes.
            self._last_measurement = job

    def _stage(self, result: RoundResult) -> None:
        """Set the round's record aside, before the next round overwrites it, and have it archived."""
        if self._keeper is None:
            return
        payloads, files = dict(self._publisher.recorded), dict(self._publisher.recorded_files)
        for outcome in result.outcomes:
            if outcome.outcome == "accepted":
                manifest, path = self._collector.record(outcome.node)
                payloads[f"updates/{outcome.node}/manifest.json"] = manifest
                files[f"updates/{outcome.node}/tensors.safetensors"] = path
        self._keeper.stage(result.round_number, payloads, files, are_synced=result.aggregated)
        self._aside(self._keeper.archive_staged)

    def _stop(self, effect: Stop) -> None:
        """End: unless another aggregator leads, what is staged is archived and what a check was about to restore, restored."""
        self.stopped = effect
        if effect.is_fenced:
            return
        if self._keeper is not None:
            self._keeper.archive_staged()
            self._keeper.take_archived()
            if self._look_at is not None or self._coordinator.is_checking:
                # No time to find out what a broker that was away has lost: it gets everything.
                self._keeper.begin_check()
            self._keeper.finish_check(before_round=self._coordinator.num_finished + 1)
        if self._last_measurement is not None:
            self.take(self._last_measurement())
        self._record.close(self._store.read_sets(self._coordinator.position.global_digest)[MODEL])

    # --- background jobs ------------------------------------------------------------------------

    def _guard(self, job: Job) -> Event:
        try:
            return job()
        except Exception as error:  # whatever it is, the run must end with a sentence, not hang
            logger.exception("job=failed")
            return WorkFailed(detail=f"{type(error).__name__}: {error}"[:400])

    def _aggregate(self, effect: Aggregate) -> Event:
        for node in effect.nodes:
            # Before the result is published, and here rather than in `stage`, which holds up the service.
            sync(self._collector.record(node)[1])
        position, algorithm = self._coordinator.position, self._exchange.algorithm.with_num_nodes(effect.num_nodes)
        sets = self._store.read_sets(position.global_digest, position.state_digest)
        down = sets.only(algorithm.down)
        updates = [self._collector.stored(node, down) for node in effect.nodes]
        protected = protect(updates, declared=effect.declared, down=down, uploads=algorithm.up, settings=self._protection)
        refused = partial(AggregationRefused, round_number=effect.round_number, contributions=protected.contributions)
        if len(protected.updates) < effect.min_updates:
            return refused(detail=f"the protection left {len(protected.updates)} updates, {effect.min_updates} are needed")

        def aggregate(chosen: Sequence[Update]) -> Sets:
            return algorithm.aggregate(sets, chosen)

        def evaluate(following: Sets) -> Evaluation | None:
            model = algorithm.whole_model(following.only(algorithm.down), None, self._initial)
            return self._evaluate(FiniteParams(model)) if model is not None else None

        try:
            protected = try_updates(
                protected,
                down=down,
                uploads=algorithm.up,
                aggregate=aggregate,
                evaluate=evaluate,
                settings=self._protection,
                min_updates=effect.min_updates,
            )
            if effect.setback is not None:
                found = leave_out_culprits(protected, effect.setback, lambda chosen: evaluate(aggregate(chosen)))
                if found is protected:
                    return refused(detail=unexplained(effect.setback))
                protected = found
                if (num_left := len(protected.updates)) < effect.min_updates:
                    detail = f"without those that spoil it {num_left} updates are left, {effect.min_updates} are needed"
                    return refused(contributions=protected.contributions, detail=detail)
            digest, state_digest = self._store.write_sets(aggregate(protected.updates), algorithm.down)
        except CodecError as error:
            return refused(detail=f"the new global model can't be used: {error}")
        return AggregationFinished(
            round_number=effect.round_number,
            next_global_digest=digest,
            next_state_digest=state_digest,
            diagnostics={},
            contributions=protected.contributions,
        )

    def _evaluate_global(self, effect: Evaluate) -> Event:
        model = self._whole_model(effect.global_digest)
        return EvaluationFinished(round_number=effect.round_number, evaluation=self._evaluate(model) if model is not None else None)

    def _whole_model(self, digest: str) -> TensorSet | None:
        """Return the model that makes predictions; None where a method has none on the server."""
        return self._exchange.algorithm.whole_model(self._store.read_sets(digest), None, self._initial)
