"""The simulator: the same machines and services over the in-memory transport, in one process and one thread."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w

from aggregator.events import TimePassed as AggregatorTimePassed
from aggregator.wiring import build_service
from edge_node.events import TimePassed as NodeTimePassed
from edge_node.learner import LocalLearner, partition_part
from edge_node.participant import Participant
from edge_node.service import EdgeNodeService, will_payload
from edge_node.spool import Spool
from federation import topics
from federation.clock import Clock
from federation.data import Dataset, load_dataset
from federation.errors import FedMQError
from federation.images import named_classes
from federation.learning.exchange import capabilities
from federation.memory_transport import InMemoryBroker, InMemoryTransport
from federation.messages import NodeStatus
from federation.process import Service
from federation.settings import RunSettings
from federation.transport import Will
from fedmq.kept_state import RUN_FILE, finish_results, make_state
from fedmq.live_line import LiveFeed, LiveLine, connect_in_memory
from fedmq.progress import RunProgress


class _SimulatedClock:
    """Real time, plus jumps over every wait in which nothing would happen."""

    def __init__(self) -> None:
        self._skipped_seconds = 0.0
        self.clock = Clock(monotonic=self.now, time_ns=time.time_ns)

    def now(self) -> float:
        return time.monotonic() + self._skipped_seconds

    def skip_to(self, moment: float) -> None:
        self._skipped_seconds += max(0.0, moment - self.now())


class _Member:
    """One service with its inbox and its background jobs, which run when nothing else is to do."""

    def __init__(self, time_passed: object) -> None:
        self.inbox: deque[Any] = deque()
        self.jobs: deque[Callable[[], Any]] = deque()
        self.time_passed = time_passed
        self.service: Service | None = None

    def step(self, clock: _SimulatedClock) -> bool:
        """Take everything in the inbox, or run one job; return whether there was anything to do."""
        service = self.service
        if service is None or service.stopped is not None:
            return False
        if service.wake_at is not None and clock.now() >= service.wake_at:
            self.inbox.append(self.time_passed)
        if self.inbox:
            while self.inbox:
                service.take(self.inbox.popleft())
            return True
        if self.jobs:
            self.inbox.append(self.jobs.popleft()())
            return True
        return False


def run_simulation(
    settings: RunSettings, *, out_dir: Path, data_dir: Path | None, cache_dir: Path, is_shown: bool, is_resumed: bool = False
) -> dict[str, Any]:
    """Run a whole federation in this process; return its summary.

    The same run file gives the same `global_digest` as over a real broker. What an interrupted run needs to go on stays in
    `out_dir/state` (fedmq/kept_state.py).

    Args:
        settings: the run; its partition says how many nodes there are.
        out_dir: the run's folder.
        data_dir: where data set names are looked up first.
        cache_dir: where downloads are kept.
        is_shown: show progress on stderr.
        is_resumed: go on with the interrupted run in `out_dir`.

    Raises:
        FedMQError: the data or settings can't be used, or the run ended early.
    """
    dataset = load_dataset(settings.data, data_dir=data_dir, cache_dir=cache_dir, progress=is_shown)
    state = make_state(out_dir)
    (out_dir / RUN_FILE).write_text(tomli_w.dumps(settings.model_dump(mode="json")), encoding="utf-8")
    clock = _SimulatedClock()
    broker = InMemoryBroker()
    aggregator = _aggregator(settings, dataset, state, out_dir, broker, clock, is_resumed=is_resumed)
    members = [aggregator, *(_node(settings, dataset, index, state, broker, clock) for index in range(settings.partition.num_nodes))]
    line = LiveLine(run=settings.run, num_nodes=settings.partition.num_nodes)
    with (
        LiveFeed(line, connect_in_memory(broker), time.monotonic) as feed,
        RunProgress(out_dir, settings.num_rounds, is_shown=is_shown, live=feed.text) as progress,
    ):
        while aggregator.service is not None and aggregator.service.stopped is None:
            has_moved = broker.deliver() > 0
            for member in members:
                has_moved |= member.step(clock)
            if not has_moved:
                _skip_idle_time(members, clock)
            progress.update()
        progress.update()
    stopped = aggregator.service.stopped if aggregator.service else None
    if stopped is None or getattr(stopped, "failed", True):
        raise FedMQError(f"the run ended early: {getattr(stopped, 'reason', 'nothing was left to do')}")
    return finish_results(out_dir)


def _skip_idle_time(members: list[_Member], clock: _SimulatedClock) -> None:
    waits = [member.service.wake_at for member in members if member.service is not None and member.service.stopped is None]
    due = [wake_at for wake_at in waits if wake_at is not None]
    if not due:
        raise FedMQError("the simulation has nothing left to do: nobody waits for anything")
    clock.skip_to(min(due))


def _aggregator(
    settings: RunSettings, dataset: Dataset, state: Path, out_dir: Path, broker: InMemoryBroker, clock: _SimulatedClock, *, is_resumed: bool
) -> _Member:
    member = _Member(AggregatorTimePassed())
    transport = InMemoryTransport(broker, client_id=f"{settings.run}-aggregator", on_event=member.inbox.append)
    member.service = build_service(
        settings=settings,
        dataset=dataset,
        state_dir=state / "aggregator",
        out_dir=out_dir,
        is_resuming=is_resumed,
        transport=transport,
        background=member.jobs.append,
        clock=clock.clock,
    )
    transport.start()
    return member


def _node(settings: RunSettings, dataset: Dataset, index: int, state: Path, broker: InMemoryBroker, clock: _SimulatedClock) -> _Member:
    name = f"node-{index}"
    data = partition_part(dataset, settings.partition, index)
    status = NodeStatus(
        node=name,
        online=True,
        instance=f"simulated-{index}",
        num_examples=data.num_examples,
        image_shape=list(data.training.image_shape),
        num_classes=len(data.class_names),
        class_names=list(named_classes(data.class_names)),
        capabilities=capabilities(settings.own_code()),
    )
    member = _Member(NodeTimePassed())
    will = Will(topic=str(topics.StatusTopic(settings.run, name)), payload=will_payload(status))
    transport = InMemoryTransport(broker, client_id=f"{settings.run}-{name}", on_event=member.inbox.append, will=will)
    member.service = EdgeNodeService(
        participant=Participant(node=name),
        transport=transport,
        spool=Spool(state / name, settings.run),
        learner=LocalLearner(node=name, data=data),
        deployer=None,
        status=status,
        run=settings.run,
        background=member.jobs.append,
        clock=clock.clock,
    )
    transport.start()
    return member
