"""A whole federation in one thread: real services, in-memory transport, a clock moved by hand.

Training is replaced by arithmetic that depends on (global model, node, round) alone, so that the final
digest is known to be the same whatever happens on the way. Everything else is what runs in production.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aggregator.events import TimePassed as AggregatorTimePassed
from aggregator.service import AggregatorService
from aggregator.wiring import build_service_for
from edge_node.events import TimePassed as NodeTimePassed
from edge_node.participant import Participant
from edge_node.service import EdgeNodeService, will_payload
from edge_node.spool import Spool
from edge_node.work import LocalUpdate
from federation import topics
from federation.clock import Clock
from federation.learning.algorithms import NodeState
from federation.learning.exchange import capabilities
from federation.learning.sets import Sets, TensorSet
from federation.memory_transport import InMemoryBroker, InMemoryTransport
from federation.messages import Evaluation, NodeStatus, RoundPlan
from federation.params import Params
from federation.process import Service
from federation.settings import RunSettings, parse_settings
from federation.signing import Signer, TrustedKeys
from federation.transport import Will

IMAGE_SHAPE = (1, 8, 8)
CLASS_NAMES = ("a", "b")
MAX_STEPS = 20_000


def initial_params() -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Return a small model of several chunks (of 4 KiB packets)."""
    generator = np.random.default_rng(0)
    return {"weight": generator.normal(size=(80, 60)).astype(np.float32), "bias": generator.normal(size=7).astype(np.float32)}


class ArithmeticLearner:
    """Adds a constant of (node, round) to the global model."""

    def __init__(self, node: str) -> None:
        self._node = node
        self.num_trainings = 0

    def train(self, plan: RoundPlan, sets: Sets, kept: NodeState, should_stop: Callable[[], bool]) -> LocalUpdate:  # noqa: ARG002
        """Return the shifted model."""
        self.num_trainings += 1
        shift = np.float32(0.1 * plan.round_number + 0.01 * len(self._node) + 0.001 * ord(self._node[-1]))
        model = sets["model"]
        shifted = Sets({"model": {name: model[name] + shift for name in model}})
        return LocalUpdate(sets=shifted, num_examples=10 + ord(self._node[-1]), loss=1.0, train_seconds=1.0, samples_per_second=10.0)

    def whole_model(self, plan: RoundPlan, sets: Sets, kept: NodeState) -> TensorSet | None:  # noqa: ARG002
        """Return the global model."""
        return sets["model"]


class Seat:
    """One process's place: its service, what waits for it, and its disk."""

    def __init__(self, time_passed: object) -> None:
        self.inbox: deque[Any] = deque()
        self.jobs: deque[Callable[[], Any]] = deque()
        self.service: Service | None = None
        self.transport: InMemoryTransport | None = None
        self._time_passed = time_passed

    def kill(self) -> None:
        """Lose everything but the disk."""
        self.inbox.clear()
        self.jobs.clear()
        self.service = self.transport = None

    def step(self, now: float) -> bool:
        """Take one item or run one job; return whether there was one."""
        service = self.service
        if service is None or service.stopped is not None:
            return False
        if service.wake_at is not None and now >= service.wake_at:
            self.inbox.append(self._time_passed)
        if self.inbox:
            service.take(self.inbox.popleft())
            return True
        if self.jobs:
            self.inbox.append(self.jobs.popleft()())
            return True
        return False


class FederationPair:
    """One aggregator and N nodes around an in-memory broker.

    Args:
        folder: their disks.
        num_nodes: named n0, n1, ...
        num_rounds: of the run.
        broker: with whatever faults a test wants; by default a sound one with 4 KiB packets.
        method: the run file's `[method]`.
        codec: the run file's `[codec]`.
        keys: folder of `NAME.key` and `trusted/NAME.pub`; None signs nothing.
        score: what the server's images say of a model; by default its accuracy is the same, whatever it is.
        protection: protection settings.
        rounds: round settings.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_nodes: int = 3,
        num_rounds: int = 3,
        broker: InMemoryBroker | None = None,
        keys: Path | None = None,
        method: Mapping[str, object] | None = None,
        codec: Mapping[str, object] | None = None,
        score: Callable[[Params], Evaluation] | None = None,
        protection: Mapping[str, object] | None = None,
        **rounds: object,
    ) -> None:
        self.folder = folder
        self._keys = keys
        self._score = score or _score
        self.broker = broker or InMemoryBroker(max_packet_bytes=4096)
        defaults: dict[str, object] = {"min_nodes": num_nodes, "quorum": 1.0, "grace_seconds": 50.0, "deadline_seconds": 100_000.0}
        chosen = {"method": method or {}, "codec": codec or {}, "protection": dict(protection or {})}
        self.settings: RunSettings = parse_settings({"run": "pair", "num_rounds": num_rounds, "rounds": defaults | rounds, **chosen})
        self.nodes = [f"n{index}" for index in range(num_nodes)]
        self.learners = {node: ArithmeticLearner(node) for node in self.nodes}
        self.now = 1000.0
        self._clock = Clock(monotonic=lambda: self.now, time_ns=lambda: int(self.now * 1e9))
        self.aggregator = Seat(AggregatorTimePassed())
        self.seats = {node: Seat(NodeTimePassed()) for node in self.nodes}
        self._num_starts = 0

    @property
    def aggregator_service(self) -> AggregatorService:
        """The aggregator, which must be up."""
        assert isinstance(self.aggregator.service, AggregatorService)
        return self.aggregator.service

    def start_aggregator(self, *, is_resuming: bool = False) -> None:
        """Start the aggregator's process."""
        seat = self.aggregator
        seat.transport = InMemoryTransport(self.broker, client_id="pair-aggregator", on_event=seat.inbox.append)
        seat.service = build_service_for(
            settings=self.settings,
            initial=initial_params(),
            image_shape=IMAGE_SHAPE,
            class_names=CLASS_NAMES,
            evaluate_global=self._score,
            state_dir=self.folder / "aggregator",
            out_dir=self.folder / "out",
            is_resuming=is_resuming,
            transport=seat.transport,
            background=seat.jobs.append,
            clock=self._clock,
            signer=self._signer("aggregator"),
            trusted_keys=TrustedKeys(self._keys / "trusted") if self._keys else None,
        )
        seat.transport.start()

    def start_node(self, node: str, **changes: object) -> None:
        """Start a node's process; keyword arguments change what its status says."""
        self._num_starts += 1
        facts: dict[str, object] = {"num_examples": 200, "image_shape": list(IMAGE_SHAPE), "num_classes": 2, "capabilities": capabilities()}
        identity = {"node": node, "online": True, "instance": f"i{self._num_starts}"}
        status = NodeStatus.model_validate(identity | facts | changes)
        seat = self.seats[node]
        will = Will(topic=str(topics.StatusTopic("pair", node)), payload=will_payload(status))
        seat.transport = InMemoryTransport(self.broker, client_id=f"pair-{node}", on_event=seat.inbox.append, will=will)
        seat.service = EdgeNodeService(
            participant=Participant(node=node),
            transport=seat.transport,
            spool=Spool(self.folder / node, "pair"),
            learner=self.learners[node],
            deployer=None,
            status=status,
            run="pair",
            background=seat.jobs.append,
            clock=self._clock,
            signer=self._signer(node),
        )
        seat.transport.start()

    def start(self) -> None:
        """Start everything."""
        self.start_aggregator()
        for node in self.nodes:
            self.start_node(node)

    def kill(self, name: str) -> None:
        """End a process as by SIGKILL: its link breaks, its will is published, its disk stays."""
        self.broker.sever(f"pair-{name}")
        (self.aggregator if name == "aggregator" else self.seats[name]).kill()

    def step(self) -> bool:
        """Carry what is on the way, then let everyone take one thing; return whether anything happened."""
        has_moved = self.broker.deliver() > 0
        for seat in (self.aggregator, *self.seats.values()):
            has_moved |= seat.step(self.now)
        return has_moved

    def run(self, until: Callable[[], bool] | None = None) -> None:
        """Step until the aggregator has stopped, or `until` holds; time jumps over idle waits."""
        for _ in range(MAX_STEPS):
            if until() if until else self.is_over:
                if self.is_over:
                    # As a stopping transport does: send what is pending.
                    self.broker.deliver()
                return
            if not self.step():
                self._jump()
        raise AssertionError(f"the federation is stuck at {self.now}: {self.describe()}")

    @property
    def is_over(self) -> bool:
        """Whether the aggregator has stopped."""
        return self.aggregator.service is not None and self.aggregator.service.stopped is not None

    @property
    def global_digest(self) -> str:
        """Digest of the run's current global model."""
        return self.aggregator_service._coordinator.position.global_digest

    def describe(self) -> str:
        """Return where everybody stands."""
        stands = {node: getattr(seat.service, "_participant", None) for node, seat in self.seats.items()}
        phases = {node: (machine.phase, machine.round_number) for node, machine in stands.items() if machine}
        return f"{getattr(self.aggregator.service, '_coordinator', None) and self.aggregator_service._coordinator.phase} {phases}"

    def _signer(self, name: str) -> Signer | None:
        return Signer(self._keys / f"{name}.key") if self._keys else None

    def _jump(self) -> None:
        services = [seat.service for seat in (self.aggregator, *self.seats.values())]
        waits = [service.wake_at for service in services if service is not None and service.stopped is None]
        due = [wake_at for wake_at in waits if wake_at is not None]
        assert due, f"nobody waits for anything: {self.describe()}"
        self.now = max(self.now + 0.001, min(due))


def _score(params: Params) -> Evaluation:
    total = float(sum(np.abs(params[name]).sum() for name in params))
    return Evaluation(
        num_examples=2,
        accuracy=0.5,
        f1_macro=0.5,
        f1_weighted=0.5,
        loss=total,
        class_accuracy=[0.5, 0.5],
        confusion_matrix=[[1, 0], [1, 0]],
    )
