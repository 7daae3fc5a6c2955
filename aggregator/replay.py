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

from aggregator.recorded_round import Link, RecordChecker, RecordedRound, RecordError
from aggregator.round_folder import RoundFolder
from federation.codec import FileParams, write_params
from federation.errors import ArchiveError
from federation.messages import Evaluation, RoundResult
from federation.params import Params
from federation.settings import StrategySettings
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

    link: Link
    digest: str
    state_digest: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Computed:
    """What aggregating a round's updates gives."""

    nodes: tuple[str, ...]
    params: FileParams | None
    """None where nothing was aggregated: the round's global model stays."""
    digest: str
    state: FileParams | None
    state_digest: str | None


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
        state_digest: str | None = None
        with tempfile.TemporaryDirectory(prefix="fedmq-replay-") as scratch:
            for record, follows in self._records(round_numbers, Path(scratch)):
                number, result = record.result.round_number, record.result
                if follows and record.plan.state_digest != state_digest:
                    raise RecordError(number, "plan.json", f"it names another state of the strategy than round {number - 1} ended with")
                computed = self._compute(record, WhatIf(), None, Path(scratch))
                if computed.digest != result.next_global_digest:
                    detail = f"aggregating the round again gives {computed.digest[:12]}, it says {result.next_global_digest[:12]}"
                    raise RecordError(number, "result.json", detail)
                state_digest = computed.state_digest if result.aggregated else record.plan.state_digest
                yield record

    def what_if(self, round_numbers: Sequence[int], change: WhatIf, evaluate: Callable[[Params], Evaluation] | None) -> Iterator[Changed]:
        """Aggregate recorded updates by another rule; yield what each round would have ended with.

        Each round begins with the recorded global model, for its updates were trained from that.

        Raises:
            ArchiveError: a record can't be trusted.
        """
        state: FileParams | None = None
        with tempfile.TemporaryDirectory(prefix="fedmq-replay-") as scratch:
            for record, _ in self._records(round_numbers, Path(scratch)):
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

    def _records(self, round_numbers: Sequence[int], scratch: Path) -> Iterator[tuple[RecordedRound, bool]]:
        """Yield each round's checked record, on disk until the next, and whether the round before was looked at, too."""
        previous: RecordedRound | None = None
        for number in round_numbers:
            path = scratch / f"round-{number}"
            path.mkdir()
            follows = previous is not None and previous.result.round_number == number - 1
            link = previous.link if previous and follows else None
            record = self._checker.check(self._extract(number, path, link), number, link)
            yield record, follows
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
        strategy = build_strategy(change.strategy or record.plan.strategy)
        if change.strategy is None and (state is None or not change.without):
            state = record.state_params
        aggregation = strategy.aggregate(
            state=strategy.initial_state(record.global_params) if state is None else state,
            global_params=record.global_params,
            updates=[update for update in record.updates if update.node in nodes],
        )
        digest = write_params(model_file, aggregation.params, durable=False)
        state_digest = write_params(state_file, aggregation.state, durable=False) if aggregation.state else None
        return _Computed(
            nodes=nodes,
            params=FileParams(model_file),
            digest=digest,
            state=FileParams(state_file) if state_digest else None,
            state_digest=state_digest,
        )
