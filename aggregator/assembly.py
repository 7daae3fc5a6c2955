"""Puts an aggregator together around any model and evaluation; needs no learning library."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from aggregator.archive import Archive
from aggregator.checkpoint import CheckpointStore
from aggregator.cohort import Expectation, keeps_node_state
from aggregator.coordinator import Coordinator, Sign
from aggregator.events import Position
from aggregator.record import RunRecord
from aggregator.round_keeper import RoundKeeper
from aggregator.round_messages import choice_of
from aggregator.service import AggregatorService, Job, Measure
from aggregator.updates import UpdateCollector
from federation.clock import Clock
from federation.codec import layout_of
from federation.errors import CheckpointError
from federation.images import named_classes
from federation.learning.algorithms import Algorithm, build_algorithm
from federation.learning.codecs import flatten
from federation.learning.exchange import build_exchange
from federation.learning.own_code import capability_of
from federation.learning.sets import Sets, TensorSet
from federation.messages import Evaluation, RoundResult
from federation.params import Params
from federation.settings import RunSettings
from federation.signing import Signer, TrustedKeys
from federation.transport import Transport


def build_service_for(
    *,
    settings: RunSettings,
    initial: Params,
    image_shape: tuple[int, int, int],
    class_names: tuple[str, ...],
    evaluate_global: Callable[[Params], Evaluation | None],
    state_dir: Path,
    out_dir: Path,
    is_resuming: bool,
    transport: Transport,
    background: Callable[[Job], None],
    clock: Clock,
    aside: Callable[[Callable[[], Any]], None] | None = None,
    measure: Measure | None = None,
    keeps_rounds: bool = True,
    signer: Signer | None = None,
    trusted_keys: TrustedKeys | None = None,
) -> AggregatorService:
    """Return a service ready for its transport.

    Args:
        settings: the run's.
        initial: the network from the run's seed.
        image_shape: channels, height and width of the nodes' images.
        class_names: of their labels.
        evaluate_global: evaluates a global model; None is published as no evaluation.
        state_dir: what must survive a restart.
        out_dir: the run's folder: summary, metrics, model, archive.
        is_resuming: continue from the checkpoint in `state_dir`.
        transport: not yet started.
        background: runs the jobs that a round waits for.
        clock: what time it is.
        aside: runs the jobs that no round waits for; by default `background` does.
        measure: measures each global model beside the next round.
        keeps_rounds: archive finished rounds, and bound what they take on the broker.
        signer: signs results.
        trusted_keys: by which updates must be signed; None takes unsigned ones.

    Raises:
        CheckpointError: there is a checkpoint although the run is not resumed, or it can't be used.
    """
    whole = TensorSet(initial)
    method, codec = choice_of(settings.method), choice_of(settings.codec)
    algorithm = build_algorithm(method.name, method.settings, num_nodes=settings.rounds.min_nodes)
    start = algorithm.start(whole)
    down = start.only(algorithm.down)
    exchange = build_exchange(method, codec, num_nodes=algorithm.num_nodes, down=down.signatures)
    store = CheckpointStore(state_dir, settings)
    position = _starting_position(store, start, algorithm, is_resuming=is_resuming, now_ns=clock.time_ns())
    record = RunRecord(
        out_dir=out_dir, settings=settings, num_nodes=settings.partition.num_nodes, is_resumed=is_resuming, class_names=class_names
    )
    record.open(position.global_digest)
    expectation = Expectation(
        image_shape=image_shape,
        num_classes=len(class_names),
        class_names=named_classes(class_names),
        global_bytes=layout_of(flatten(down).signature).total_bytes,
        needs=frozenset({capability_of(method.name), capability_of(codec.name)}),
        min_updates=algorithm.min_updates,
        keeps_node_state=keeps_node_state(settings),
    )
    instance = secrets.token_hex(8)
    coordinator = Coordinator(
        settings=settings,
        expectation=expectation,
        position=position,
        is_resumed=is_resuming,
        instance=instance,
        sign=_sealer(signer, clock),
    )
    keeper = None
    if keeps_rounds:
        keeper = RoundKeeper(
            run=settings.run,
            folder=store.folder,
            archive=Archive(out_dir / "rounds"),
            transport=transport,
            budget_bytes=settings.rounds.retained_bytes,
            num_finished=coordinator.num_finished,
        )
        if is_resuming:
            record.restore(coordinator.num_finished, keeper.finished_result)
    return AggregatorService(
        coordinator=coordinator,
        transport=transport,
        store=store,
        collector=UpdateCollector(
            folder=store.open_updates_folder(instance), run=settings.run, exchange=exchange, trusted_keys=trusted_keys
        ),
        record=record,
        exchange=exchange,
        initial=whole,
        evaluate=evaluate_global,
        measure=measure,
        background=background,
        aside=aside or background,
        keeper=keeper,
        run=settings.run,
        clock=clock,
    )


def _sealer(signer: Signer | None, clock: Clock) -> Sign:
    """Return what completes a result: when the round ended, and a signature."""

    def seal(result: RoundResult) -> RoundResult:
        stamped = result.model_copy(update={"ended_ns": max(0, clock.time_ns())})
        return signer.sign(stamped) if signer else stamped

    return seal


def _starting_position(store: CheckpointStore, start: Sets, algorithm: Algorithm, *, is_resuming: bool, now_ns: int) -> Position:
    stored = store.load(now_ns=now_ns)
    if stored is not None and not is_resuming:
        raise CheckpointError(f"{store.folder} holds a checkpoint of this run; continue it with --resume, or choose another run name")
    if stored is not None:
        return replace(stored, epoch=stored.epoch + 1)
    digest, state_digest = store.write_sets(start, algorithm.down)
    return Position(epoch=1, round_number=1, cohort=(), global_digest=digest, state_digest=state_digest)
