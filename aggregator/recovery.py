"""Rebuilds an aggregator's checkpoint from what the broker retains, after its disk was lost."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aggregator.archive import Archive
from aggregator.broker_rounds import BrokerRounds
from aggregator.checkpoint import CheckpointStore
from aggregator.cohort import keeps_node_state
from aggregator.events import Position
from aggregator.open_round import counted_updates
from aggregator.record import RunRecord
from aggregator.recorded_round import Link, RecordChecker
from aggregator.replay import End, Ending, Replay
from aggregator.retention import Retention, measure
from aggregator.round_folder import RoundFolder, read_payload
from aggregator.setback import best_accuracy
from federation import topics
from federation.codec import FileParams, file_digest
from federation.errors import ArchiveError, CheckpointError, RemoteProtocolError
from federation.messages import MAX_MESSAGE_BYTES, RoundPlan, RoundResult, RunState, parse
from federation.settings import RunSettings
from federation.signing import TrustedKeys

logger = logging.getLogger("aggregator")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """Where a recovered run stands."""

    position: Position
    num_rounds: int
    """Rounds that are in the archive again, each checked and repeated."""
    settings: RunSettings
    repaired: tuple[int, ...] = ()
    """Rounds that are damaged on the broker; the archive still held them, and the aggregator publishes them again."""
    skipped: tuple[str, ...] = ()
    """Of rounds that are damaged and nowhere whole, what is wrong with each; the run goes on without them."""


@dataclass(slots=True)
class _Found:
    """What the broker and what is left of the archive hold of a run."""

    results: dict[int, RoundResult] = field(default_factory=dict)
    ending: Ending | None = None
    repaired: list[int] = field(default_factory=list)
    skipped: dict[int, str] = field(default_factory=dict)


def recover(run: str, broker: BrokerRounds, *, state_dir: Path, out_dir: Path, trusted_keys: TrustedKeys | None, now_ns: int) -> Recovered:
    """Write a checkpoint, the archive and the summary of a run; an aggregator that resumes goes on from there.

    Every round is replayed before it is believed, and archived as it was replayed. Results and models are the aggregator's to write
    alone: what contradicts them ends the recovery. Updates are their nodes': a node can spoil a round by writing over its own, and
    such a round is taken from the archive, or skipped by name.

    Args:
        run: the run's name.
        broker: holds its state and at least the newest round.
        state_dir: the aggregator's, without a checkpoint of this run.
        out_dir: the run's folder.
        trusted_keys: by which manifests and results must be signed; None leaves signatures unchecked.
        now_ns: the clock, nanoseconds since 1970.

    Raises:
        ArchiveError: the broker does not hold what is needed, or it does not agree with itself.
        CheckpointError: there is a checkpoint already.
    """
    state = broker.state()
    settings = state.run_settings()
    if settings is None:
        raise ArchiveError(f"the broker's state of {run!r} does not hold its settings: it was written by an older version")
    store = CheckpointStore(state_dir, settings)
    if store.load() is not None:
        raise CheckpointError(f"{store.folder} holds a checkpoint of this run: continue it with --resume, or move it away to recover")
    if not broker.round_numbers():
        if state.result_digest is not None:
            raise ArchiveError(
                f"the broker has lost the finished rounds of {run!r}, although its state names one: only an aggregator that still has its "
                "checkpoint and archive can publish them again (--resume)"
            )
        raise ArchiveError(f"no round of {run!r} is finished, so nothing is lost: start it again with --resume")
    archive = Archive(out_dir / "rounds")
    retention = Retention(store.folder / "retained.jsonl", budget_bytes=2**63)
    found = _gather(run, broker, archive, retention, trusted_keys)
    newest = max(found.results)
    if found.ending is None or (state.result_digest != found.ending.link.result_digest and not _is_newer(state, newest)):
        raise ArchiveError(f"the newest result on the broker, of round {newest}, is not the one that the run's state names")
    finished = newest >= settings.num_rounds
    number, start = _start(run, broker, archive, found, state, store, trusted_keys)
    results = [found.results[key] for key in sorted(found.results) if key < number]
    position = Position(
        epoch=state.epoch,
        round_number=number - (1 if finished and number > newest else 0),
        cohort=() if finished or number <= newest else _open_cohort(run, broker, number, start.digest),
        global_digest=start.digest,
        state_digest=start.state_digest,
        previous_result_digest=start.link.result_digest if start.link else None,
        failed_rounds=_trailing_failures(results),
        finished=finished and number > newest,
        counted=_counted(results) if keeps_node_state(settings) else {},
        best_accuracy=best_accuracy(results),
    )
    _summarise(results, settings, out_dir)
    store.save(position, now_ns=now_ns)
    return Recovered(
        position=position,
        num_rounds=len(found.results) - len(found.skipped),
        settings=settings,
        repaired=tuple(found.repaired),
        skipped=tuple(found.skipped.values()),
    )


def _gather(run: str, broker: BrokerRounds, archive: Archive, retention: Retention, trusted_keys: TrustedKeys | None) -> _Found:
    """Check and repeat every round, from the broker or else from the archive; archive what agrees."""
    found, archived = _Found(), archive.round_numbers()
    on_broker = broker.round_numbers()
    numbers = sorted({*on_broker, *(number for number in archived if number < on_broker[-1])})
    from_broker, from_archive = Replay(run, broker, trusted_keys), Replay(run, archive, trusted_keys)
    for number in numbers:
        before = found.ending if number - 1 in found.results else None
        with tempfile.TemporaryDirectory(prefix="fedmq-recover-") as scratch:
            broker_path, archive_path = Path(scratch) / "broker", Path(scratch) / "archive"
            broker_path.mkdir()
            archive_path.mkdir()
            try:
                record, found.ending = from_broker.verify_round(number, broker_path, before)
                if number not in archived:
                    archive.write(number, record.folder)
                retention.add(number, measure(record.folder, record.result_digest))
                found.results[number] = record.result
                continue
            except ArchiveError as error:
                fault = error
            try:
                record, found.ending = from_archive.verify_round(number, archive_path, before)
            except ArchiveError:
                # Nobody but the aggregator writes results: this must be one, and continue the chain.
                result, digest = RecordChecker(run, trusted_keys).check_result(
                    RoundFolder(path=broker_path), number, before.link if before else None
                )
                link = Link(result_digest=digest, next_global_digest=result.next_global_digest)
                found.ending = Ending(link=link, knows_state=False)
                found.results[number], found.skipped[number] = result, str(fault)
                logger.warning("%s; it is skipped", fault)
                continue
            found.results[number] = record.result
            if number in on_broker:
                retention.add(number, measure(record.folder, record.result_digest).model_copy(update={"is_suspect": True}))
                found.repaired.append(number)
                logger.warning("%s; taken from the archive", fault)
    return found


def _start(
    run: str, broker: BrokerRounds, archive: Archive, found: _Found, state: RunState, store: CheckpointStore, keys: TrustedKeys | None
) -> tuple[int, End]:
    """Return the round that the run goes on with and what it begins with, which is stored.

    Where the newest round's updates are damaged, the model that came of them is still there as the next round's; if not even
    that is, the round is led again.

    Raises:
        ArchiveError: neither is there.
    """
    newest = max(found.results)
    if newest not in found.skipped:
        return newest + 1, Replay(run, archive, keys).write_end(newest, store.write)
    result = found.results[newest]
    wanted = [(newest + 1, result.next_global_digest, found.ending.link if found.ending else None)]
    if state.round_number <= newest:
        # Nobody was told of a later one. What the round before left, this result names.
        before = Link(result_digest=result.previous_result_digest, next_global_digest="") if result.previous_result_digest else None
        wanted.append((newest, result.global_digest, before))
    for number, digest, link in wanted:
        with tempfile.TemporaryDirectory(prefix="fedmq-recover-") as scratch:
            try:
                return number, _published(broker, number, digest, link, Path(scratch), store, needs_plan=state.phase != "finished")
            except (ArchiveError, RemoteProtocolError):
                continue
    raise ArchiveError(f"{found.skipped[newest]}; what came of it is not on the broker either, so the run can't go on from there")


def _published(
    broker: BrokerRounds, number: int, digest: str, link: Link | None, scratch: Path, store: CheckpointStore, *, needs_plan: bool
) -> End:
    """Store what a round begins with, as the aggregator published it."""
    folder = broker.extract_start(number, scratch)
    state_digest = None
    if needs_plan or folder.plan_file.exists():
        plan = parse(RoundPlan, read_payload(folder, "plan.json", max_bytes=MAX_MESSAGE_BYTES))
        if plan.global_digest != digest:
            raise ArchiveError(f"round {number}: plan: it does not follow from the round before")
        state_digest = plan.state_digest
    for transfer, expected in (("global", digest), ("strategy", state_digest)):
        if expected is None:
            continue
        if file_digest(folder.tensors_file(transfer)) != expected or store.write(FileParams(folder.tensors_file(transfer))) != expected:
            raise ArchiveError(f"round {number}: {transfer}/manifest: it is of another model than the round before ended with")
    return End(link=link, digest=digest, state_digest=state_digest)


def _is_newer(state: RunState, round_number: int) -> bool:
    """Return whether the state speaks of a time before the newest result: the aggregator died between the two."""
    return state.phase == "training" and state.round_number == round_number


def _open_cohort(run: str, broker: BrokerRounds, round_number: int, global_digest: str) -> tuple[str, ...]:
    """Return the cohort of the round that was open, so that what its nodes have uploaded still counts; empty if none was."""
    payload = broker.payload(str(topics.PlanTopic(run, round_number)))
    if payload is None:
        return ()
    try:
        plan = parse(RoundPlan, payload)
    except RemoteProtocolError as error:
        raise ArchiveError(f"round {round_number}: plan: {error}") from None
    if (plan.run, plan.round_number, plan.global_digest) != (run, round_number, global_digest):
        raise ArchiveError(f"round {round_number}: plan: it does not follow from the round before")
    return tuple(plan.cohort)


def _counted(results: Sequence[RoundResult]) -> dict[str, str]:
    """Return each node's newest update that was aggregated, as far as the results go back."""
    counted: dict[str, str] = {}
    for result in results:
        if result.aggregated:
            counted.update(counted_updates(result.outcomes))
    return counted


def _trailing_failures(results: Sequence[RoundResult]) -> int:
    count = 0
    for result in reversed(results):
        if result.aggregated:
            break
        count += 1
    return count


def _summarise(results: Sequence[RoundResult], settings: RunSettings, out_dir: Path) -> None:
    """Write the summary. The points follow from the archive, as the run is resumed: only then are the classes' names known."""
    if not results:
        return
    record = RunRecord(out_dir=out_dir, settings=settings, num_nodes=settings.partition.num_nodes, is_resumed=True)
    record.open(results[-1].next_global_digest)
    by_number = {result.round_number: result for result in results}
    record.restore(max(by_number), by_number.get, with_points=False)
