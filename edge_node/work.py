"""What a round asks of a node beside talking: local training, and a model of its own. Runs off the service's thread."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge_node.events import Deploy, Deployed, Event, TrainingFailed, TrainingFinished
from edge_node.spool import Spool
from federation.clock import Clock
from federation.codec import FileParams
from federation.errors import CodecError, FedMQError, TrainingCancelled
from federation.learning.algorithms import NodeState
from federation.learning.exchange import build_exchange, check_capability, sets_of
from federation.learning.sets import MODEL, Sets, TensorSet
from federation.messages import LocalMetrics, MetricPoint, RoundPlan
from federation.params import Params
from federation.settings import ModelSettings

logger = logging.getLogger("edge_node")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalUpdate:
    """What local training returns."""

    sets: Sets
    """Those of the method's `up`."""
    num_examples: int
    loss: float
    train_seconds: float
    samples_per_second: float
    validation_accuracy: float | None = None
    validation_loss: float | None = None
    validation_class_accuracy: Sequence[float] = ()


class Learner(Protocol):
    """Trains one update on this node's images."""

    def train(self, plan: RoundPlan, sets: Sets, kept: NodeState, should_stop: Callable[[], bool]) -> LocalUpdate:
        """Return the update.

        Args:
            plan: the round's.
            sets: what every node was sent.
            kept: what the method keeps on this node; changed.
            should_stop: asked before every batch.

        Raises:
            TrainingCancelled: `should_stop` returned true.
            FedMQError: the global model does not fit the plan, or training can't be done here.
        """
        ...

    def whole_model(self, plan: RoundPlan, sets: Sets, kept: NodeState) -> TensorSet | None:
        """Return the model that makes predictions on this node; None where there is none."""
        ...


class Deployer(Protocol):
    """Makes a global model the device's own and measures it."""

    def deploy(self, *, run: str, round_number: int, model: ModelSettings, global_digest: str, params: Params) -> list[MetricPoint]:
        """Return what was measured; a model that can't be deployed is a point that says why."""
        ...


class RoundWork:
    """Trains and deploys; touches only the spool, and publishes figures.

    Args:
        learner: trains updates.
        deployer: makes each global model the device's own; None leaves it out.
        spool: the node's folder.
        node: this node's name.
        known: the methods and codecs it said it knows.
        run: the run's name.
        followed_round: the round that the node follows now, None for none: training for another is given up.
        publish: sends a round's points; from any thread.
        clock: what time it is.
    """

    def __init__(
        self,
        *,
        learner: Learner,
        deployer: Deployer | None,
        spool: Spool,
        node: str,
        known: Collection[str],
        run: str,
        followed_round: Callable[[], int | None],
        publish: Callable[[int, list[MetricPoint]], None],
        clock: Clock,
    ) -> None:
        self._learner = learner
        self._deployer = deployer
        self._spool = spool
        self._node = node
        self._known = known
        self._run = run
        self._followed_round = followed_round
        self._publish = publish
        self._clock = clock
        self._plan: RoundPlan | None = None

    def train(self, plan: RoundPlan, *, download_seconds: float) -> Event:
        """Train and store one update; one that is stored already is taken as it is.

        Args:
            plan: the round's; its global model is in the spool.
            download_seconds: what fetching that took, for the update's metrics.
        """
        self._plan = plan
        round_number = plan.round_number
        stored = self._spool.stored_update(round_number)
        if stored is not None and stored.base_digest == plan.global_digest:
            return TrainingFinished(round_number=round_number, base_digest=plan.global_digest, is_old=True)
        try:
            self._spool.check_space(2 * plan.global_bytes)
            check_capability(plan.method, plan.codec, self._known)
            store = self._spool.node_store
            store.settle(plan.counted.get(self._node), round_number=round_number)
            memory, sets = store.counted(), self._sets(round_number)
            exchange = build_exchange(plan.method, plan.codec, num_nodes=plan.num_nodes, down=sets.signatures)
            update = self._learner.train(plan, sets, memory.method, lambda: self._followed_round() != round_number)
            purpose = f"{plan.seed}/{round_number}/{self._node}"
            metrics = LocalMetrics(
                loss=update.loss,
                download_seconds=download_seconds,
                train_seconds=update.train_seconds,
                samples_per_second=update.samples_per_second,
                validation_accuracy=update.validation_accuracy,
                validation_loss=update.validation_loss,
                validation_class_accuracy=list(update.validation_class_accuracy),
            )
            self._spool.store_update(
                round_number,
                exchange.encode(update.sets, sets, kept=memory.codec, purpose=purpose),
                base_digest=plan.global_digest,
                num_examples=update.num_examples,
                metrics=metrics,
                memory=memory,
            )
            figures = metrics.model_dump(exclude={"validation_class_accuracy"}, exclude_none=True)
            self._publish(round_number, [MetricPoint(measurement="train", time_ns=self._clock.time_ns(), fields=figures)])
        except TrainingCancelled:
            return TrainingFailed(round_number=round_number, detail="cancelled: the round is over")
        except Exception as error:  # whatever it is, this node sits the round out and says why
            if self._followed_round() != round_number:
                # Its files went with the round it was for.
                return TrainingFailed(round_number=round_number, detail="cancelled: the round is over")
            is_expected = isinstance(error, (FedMQError, OSError))
            logger.log(logging.ERROR, "round=%d training=failed reason=%r", round_number, str(error), exc_info=not is_expected)
            return TrainingFailed(round_number=round_number, detail=f"{type(error).__name__}: {error}"[:400])
        return TrainingFinished(round_number=round_number, base_digest=plan.global_digest)

    def deploy(self, effect: Deploy) -> Event:
        """Make a global model the device's own, and publish what was measured."""
        deployed = Deployed(round_number=effect.round_number)
        if self._deployer is not None:
            try:
                params = self._whole_model(effect.round_number)
            except (OSError, CodecError) as error:
                # The next round has begun and taken the file along, as a rule: then its model is deployed instead.
                level = logging.INFO if self._followed_round() != effect.round_number else logging.WARNING
                logger.log(level, "round=%d deploy=skipped reason=%r", effect.round_number, str(error))
                return deployed
            if params is None:
                return deployed
            try:
                points = self._deployer.deploy(
                    run=self._run,
                    round_number=effect.round_number,
                    model=effect.model,
                    global_digest=effect.global_digest,
                    params=params,
                )
                self._publish(effect.round_number, points)
            except Exception:  # a device without its own model still trains
                logger.exception("round=%d deploy=failed", effect.round_number)
        return deployed

    def _sets(self, round_number: int) -> Sets:
        """Return what every node was sent at the start of a round, read from disk on access."""
        tensors = FileParams(self._spool.global_path(round_number))
        return sets_of(tensors, tensors.signature)

    def _whole_model(self, round_number: int) -> Params | None:
        """Return the model that makes predictions on this node, read; None where there is none."""
        sets, plan = self._sets(round_number), self._plan
        if plan is None:
            # Restarted after the last round: what the method would add to the global model is not known any more.
            return dict(sets[MODEL])
        whole = self._learner.whole_model(plan, sets, self._spool.node_store.newest().method)
        return dict(whole) if whole is not None else None
