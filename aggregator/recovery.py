"""Rebuilds an aggregator's checkpoint from what the broker retains, after its disk was lost."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aggregator.archive import Archive
from aggregator.broker_rounds import BrokerRounds
from aggregator.checkpoint import CheckpointStore
from aggregator.events import Position
from aggregator.record import RunRecord
from aggregator.replay import Replay
from aggregator.retention import Retention, measure
from federation import topics
from federation.errors import ArchiveError, CheckpointError, RemoteProtocolError
from federation.messages import RoundPlan, RoundResult, RunState, parse
from federation.settings import RunSettings
from federation.signing import TrustedKeys

logger = logging.getLogger("aggregator")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """Where a recovered run stands."""

    position: Position
    num_rounds: int
    """Rounds that the broker still held, now in the archive again."""
    settings: RunSettings


def recover(run: str, broker: BrokerRounds, *, state_dir: Path, out_dir: Path, trusted_keys: TrustedKeys | None, now_ns: int) -> Recovered:
    """Write a checkpoint, the archive and the summary of a run; an aggregator that resumes goes on from there.

    Every round is replayed before it is believed.

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
    if state.settings is None:
        raise ArchiveError(f"the broker's state of {run!r} does not hold its settings: it was written by an older version")
    store = CheckpointStore(state_dir, state.settings)
    if store.load() is not None:
        raise CheckpointError(f"{store.folder} holds a checkpoint of this run: continue it with --resume, or move it away to recover")
    numbers = broker.round_numbers()
    if not numbers:
        raise ArchiveError(f"no round of {run!r} is finished, so nothing is lost: start it again with --resume")
    replay = Replay(run, broker, trusted_keys)
    results = [record.result for record in replay.verify(numbers)]
    end = replay.write_end(numbers[-1], store.write)
    if state.result_digest != end.link.result_digest and not _is_newer(state, numbers[-1]):
        raise ArchiveError(f"the newest result on the broker, of round {numbers[-1]}, is not the one that the run's state names")
    finished = numbers[-1] >= state.settings.num_rounds
    position = Position(
        epoch=state.epoch,
        round_number=numbers[-1] + (0 if finished else 1),
        cohort=() if finished else _open_cohort(run, broker, numbers[-1] + 1, end.digest),
        global_digest=end.digest,
        state_digest=end.state_digest,
        previous_result_digest=end.link.result_digest,
        failed_rounds=_trailing_failures(results),
        finished=finished,
    )
    _archive(broker, numbers, Archive(out_dir / "rounds"), Retention(store.folder / "retained.json", budget_bytes=2**63))
    _summarise(results, state.settings, out_dir, now_ns)
    store.save(position, now_ns=now_ns)
    return Recovered(position=position, num_rounds=len(numbers), settings=state.settings)


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


def _trailing_failures(results: Sequence[RoundResult]) -> int:
    count = 0
    for result in reversed(results):
        if result.aggregated:
            break
        count += 1
    return count


def _archive(broker: BrokerRounds, numbers: Sequence[int], archive: Archive, retention: Retention) -> None:
    for number in numbers:
        with tempfile.TemporaryDirectory(prefix="fedmq-recover-") as scratch:
            folder = broker.extract(number, Path(scratch))
            retention.add(number, measure(folder, hashlib.sha256(folder.result_file.read_bytes()).hexdigest()))
            if number not in archive.round_numbers():
                archive.write(number, folder)


def _summarise(results: Sequence[RoundResult], settings: RunSettings, out_dir: Path, now_ns: int) -> None:
    if (out_dir / "summary.json").exists():
        return
    record = RunRecord(out_dir=out_dir, settings=settings, num_nodes=settings.partition.num_nodes)
    record.open(results[0].global_digest)
    moment = now_ns - int(sum(result.seconds for result in results) * 1e9)
    for result in results:
        moment += int(result.seconds * 1e9)
        record.add_result(result, moment)
