"""Replay: repeats recorded rounds and compares, bit for bit; or asks what another rule would have made of them.

Works on records alone (aggregator/recorded_round.py), one round at a time: from the broker, while a run goes on or
long after, or from the archive; the aggregator that led them need not be there.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from aggregator.probation import TOLERANCE, leave_out, nodes_on_probation
from aggregator.protection import Contribution, protect
from aggregator.recorded_round import Link, RecordChecker, RecordedRound, RecordError
from aggregator.round_folder import RoundFolder
from federation.codec import FileParams, write_params
from federation.errors import ArchiveError
from federation.messages import Evaluation, RoundResult
from federation.params import Params
from federation.settings import MIN_UPDATES, StrategySettings
from federation.signing import TrustedKeys
from federation.strategies import build_strategy


class RoundSource(Protocol):
    """Where records come from: `aggregator.archive.Archive`, or a broker."""

    def round_numbers(self) -> list[int]:
        """Return the rounds that are there, in order."""
        ...

    def extract(self, round_number: int, into: Path) -> RoundFolder:
        """Write a round's record into an empty folder.

        Raises:
            ArchiveError: it is not whole; the text names round and place.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What another rule makes of one round's updates."""

    round_number: int
    result: RoundResult
    nodes: tuple[str, ...]
    """Whose updates went in."""
    next_global_digest: str
    evaluation: Evaluation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """What is to be different.

    Args:
        strategy: the rule; None keeps the recorded one.
        without: nodes whose updates are left out.
    """

    strategy: StrategySettings | None = None
    without: Collection[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """What a round ended with, stored."""

    link: Link | None
    """What the next round must name; None before the first."""
    digest: str
    state_digest: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What a round that was looked at leaves to the next one."""

    link: Link
    state_digest: str | None = None
    knows_state: bool = True
    """False where only the round's result is known, not what its updates made of the strategy's state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Computed:
    """What aggregating a round's updates gives."""

    nodes: tuple[str, ...]
    params: FileParams | None
    """None where nothing was aggregated: the round's global model stays."""
    digest: str
    state: FileParams | None
    state_digest: str | None
    contributions: tuple[Contribution, ...] = ()
    """What the protection made of each update."""


class Replay:
    """Repeats the rounds of one run.

    Args:
        run: the run's name.
        source: where the records come from.
        trusted_keys: by which manifests and results must be signed; None leaves signatures unchecked.
    """

    def __init__(self, run: str, source: RoundSource, trusted_keys: TrustedKeys | None = None) -> None:
        self._source = source
        self._checker = RecordChecker(run, trusted_keys)

    def verify(self, round_numbers: Sequence[int]) -> Iterator[RecordedRound]:
        """Check and repeat rounds, in order; yield the record of each that agrees, to be used before the next is asked for.

        Args:
            round_numbers: which; neighbours must name each other.

        Raises:
            ArchiveError: names the first round, and the place in it, that does not agree.
        """
        ending: Ending | None = None
        with tempfile.TemporaryDirectory(prefix="fedmq-replay-") as scratch:
            previous = 0
            for number in round_numbers:
                path = Path(scratch) / f"round-{number}"
                path.mkdir()
                record, ending = self.verify_round(number, path, ending if previous == number - 1 else None)
                yield record
                previous = number
                shutil.rmtree(path)

    def verify_round(self, number: int, path: Path, before: Ending | None) -> tuple[RecordedRound, Ending]:
        """Check and repeat one round; return its record, which lies in `path`, and what it leaves to the next.

        Args:
            number: the round.
            path: an empty folder; nothing that it holds afterwards is read from the source again.
            before: what the round before left; None where that is not known.

        Raises:
            ArchiveError: names the place that does not agree.
        """
        link = before.link if before else None
        record = self._checker.check(self._extract(number, path, link), number, link)
        if before is not None and before.knows_state and record.plan.state_digest != before.state_digest:
            raise RecordError(number, "plan.json", f"it names another state of the strategy than round {number - 1} ended with")
        with tempfile.TemporaryDirectory(prefix="fedmq-replay-") as scratch:
            computed = self._compute(record, WhatIf(), None, Path(scratch))
        if record.result.aggregated:
            _check_contributions(record, computed.contributions)
        if computed.digest != record.result.next_global_digest:
            detail = f"aggregating the round again gives {computed.digest[:12]}, it says {record.result.next_global_digest[:12]}"
            raise RecordError(number, "result.json", detail)
        state_digest = computed.state_digest if record.result.aggregated else record.plan.state_digest
        return record, Ending(link=record.link, state_digest=state_digest)

    def what_if(self, round_numbers: Sequence[int], change: WhatIf, evaluate: Callable[[Params], Evaluation] | None) -> Iterator[Changed]:
        """Aggregate recorded updates by another rule; yield what each round would have ended with.

        Each round begins with the recorded global model, for its updates were trained from that.

        Raises:
            ArchiveError: a record can't be trusted.
        """
        state: FileParams | None = None
        with tempfile.TemporaryDirectory(prefix="fedmq-replay-") as scratch:
            for record in self._records(round_numbers, Path(scratch)):
                computed = self._compute(record, change, state, Path(scratch))
                state = computed.state or state
                yield Changed(
                    round_number=record.result.round_number,
                    result=record.result,
                    nodes=computed.nodes,
                    next_global_digest=computed.digest,
                    evaluation=evaluate(computed.params) if evaluate is not None and computed.params is not None else None,
                )

    def write_end(self, round_number: int, store: Callable[[Params], str]) -> End:
        """Store what a round ended with, checked and repeated: the model, and the strategy's state if it keeps one.

        Args:
            round_number: the round.
            store: takes tensors, returns their digest.

        Raises:
            ArchiveError: the round does not agree.
        """
        with tempfile.TemporaryDirectory(prefix="fedmq-replay-") as scratch:
            for record in self.verify([round_number]):
                computed = self._compute(record, WhatIf(), None, Path(scratch))
                state = computed.state if record.result.aggregated else record.state_params
                digest = store(record.global_params if computed.params is None else computed.params)
                return End(link=record.link, digest=digest, state_digest=store(state) if state is not None else None)
        raise ArchiveError(f"round {round_number}: there is no record of it")

    def _records(self, round_numbers: Sequence[int], scratch: Path) -> Iterator[RecordedRound]:
        """Yield each round's checked record, on disk until the next."""
        previous: RecordedRound | None = None
        for number in round_numbers:
            path = scratch / f"round-{number}"
            path.mkdir()
            link = previous.link if previous and previous.result.round_number == number - 1 else None
            record = self._checker.check(self._extract(number, path, link), number, link)
            yield record
            previous = record
            shutil.rmtree(path)

    def _extract(self, number: int, path: Path, link: Link | None) -> RoundFolder:
        try:
            return self._source.extract(number, path)
        except RecordError:
            folder = RoundFolder(path=path)
            if folder.result_file.exists():
                # Something may be missing only because a changed result names it.
                self._checker.check_result(folder, number, link)
            raise

    def _compute(self, record: RecordedRound, change: WhatIf, state: FileParams | None, scratch: Path) -> _Computed:
        """Aggregate a round's updates: as recorded, or changed, and then with `state` from the rounds before."""
        nodes = tuple(update.node for update in record.updates if update.node not in change.without)
        model_file, state_file = scratch / "model.safetensors", scratch / f"state-{record.result.round_number}.safetensors"
        if not record.result.aggregated or not nodes:
            # Below quorum, or with nobody left, the global model stays.
            return _Computed(nodes=(), params=None, digest=record.result.global_digest, state=None, state_digest=None)
        strategy_settings = change.strategy or record.plan.strategy
        strategy = build_strategy(strategy_settings)
        if change.strategy is None and (state is None or not change.without):
            state = record.state_params
        protected = protect(
            [update for update in record.updates if update.node in nodes],
            declared={
                outcome.node: outcome.declared_examples for outcome in record.result.outcomes if outcome.declared_examples is not None
            },
            global_params=record.global_params,
            settings=record.plan.protection,
        )
        stated = {outcome.node: outcome.weight for outcome in record.result.outcomes}
        if any(stated.get(update.node) == 0 for update in protected.updates):
            suspects = nodes_on_probation(
                protected, global_params=record.global_params, settings=record.plan.protection, tolerance=TOLERANCE
            )
            protected = leave_out(protected, [node for node in suspects if stated.get(node) == 0])
        if len(protected.updates) < MIN_UPDATES.get(strategy_settings.name, 1):
            return _Computed(nodes=(), params=None, digest=record.result.global_digest, state=None, state_digest=None)
        aggregation = strategy.aggregate(
            state=strategy.initial_state(record.global_params) if state is None else state,
            global_params=record.global_params,
            updates=protected.updates,
        )
        digest = write_params(model_file, aggregation.params, durable=False)
        state_digest = write_params(state_file, aggregation.state, durable=False) if aggregation.state else None
        return _Computed(
            nodes=tuple(update.node for update in protected.updates),
            contributions=protected.contributions,
            params=FileParams(model_file),
            digest=digest,
            state=FileParams(state_file) if state_digest else None,
            state_digest=state_digest,
        )


def _check_contributions(record: RecordedRound, contributions: Sequence[Contribution]) -> None:
    """Raise unless the result says of each update what the protection makes of it."""
    stated = {outcome.node: (outcome.weight, outcome.distance) for outcome in record.result.outcomes}
    for contribution in contributions:
        if stated[contribution.node] != (contribution.weight, contribution.distance):
            detail = f"{contribution.node} counts for {contribution.weight} examples at distance {contribution.distance}"
            number = record.result.round_number
            raise RecordError(number, "result.json", f"{detail}, it says {stated[contribution.node][0]} at {stated[contribution.node][1]}")
