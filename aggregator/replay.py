"""Replay: repeats recorded rounds and compares, bit for bit; or asks what another rule would have made of them.

Works on records alone (aggregator/recorded_round.py), one round at a time: from the broker, while a run goes on or
long after, or from the archive; the aggregator that led them need not be there.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from aggregator.probation import TOLERANCE, leave_out, nodes_on_probation
from aggregator.protection import Contribution, Protected, protect
from aggregator.recorded_round import Link, RecordChecker, RecordedRound, RecordError
from aggregator.round_folder import RoundFolder
from aggregator.setback import max_culprits
from federation.codec import FileParams, write_params
from federation.errors import ArchiveError, SettingsError
from federation.learning.algorithms import Algorithm, build_algorithm
from federation.learning.codecs import flatten
from federation.learning.exchange import sets_of
from federation.learning.sets import MODEL, Sets, TensorSet
from federation.messages import Evaluation, RoundResult
from federation.params import Params
from federation.signing import TrustedKeys


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
        method: whose half of the server aggregates; None keeps the recorded one.
        without: nodes whose updates are left out.
    """

    method: Algorithm.Settings | None = None
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
    """False where only the round's result is known, not what its updates made of the sets that stay on the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Computed:
    """What aggregating a round's updates gives."""

    nodes: tuple[str, ...]
    sets: Sets | None
    """What nodes would be sent next; None where nothing was aggregated: the round's sets stay."""
    digest: str
    state: Sets | None
    """What would stay on the server; None likewise, or where the method has no such sets."""
    state_digest: str | None
    model: TensorSet | None = None
    """What makes predictions; None where the server has nothing that does."""
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
            raise RecordError(number, "plan.json", f"it names other sets of the server than round {number - 1} ended with")
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
        state: Sets | None = None
        with tempfile.TemporaryDirectory(prefix="fedmq-replay-") as scratch:
            for record in self._records(round_numbers, Path(scratch)):
                computed = self._compute(record, change, state, Path(scratch))
                state = computed.state or state
                yield Changed(
                    round_number=record.result.round_number,
                    result=record.result,
                    nodes=computed.nodes,
                    next_global_digest=computed.digest,
                    evaluation=evaluate(computed.model) if evaluate is not None and computed.model is not None else None,
                )

    def write_end(self, round_number: int, store: Callable[[Params], str]) -> End:
        """Store what a round ended with, checked and repeated: the sets that nodes are sent, and those that stay on the server.

        Args:
            round_number: the round.
            store: takes tensors, returns their digest.

        Raises:
            ArchiveError: the round does not agree.
        """
        with tempfile.TemporaryDirectory(prefix="fedmq-replay-") as scratch:
            for record in self.verify([round_number]):
                computed = self._compute(record, WhatIf(), None, Path(scratch))
                down, kept = _parted(record) if computed.sets is None else (computed.sets, computed.state)
                state_digest = store(flatten(kept)) if kept is not None else None
                return End(link=record.link, digest=store(flatten(down)), state_digest=state_digest)
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

    def _compute(self, record: RecordedRound, change: WhatIf, state: Sets | None, scratch: Path) -> _Computed:
        """Aggregate a round's updates: as recorded, or changed, and then with `state` from the rounds before."""
        nodes = tuple(update.node for update in record.updates if update.node not in change.without)
        nothing = _Computed(nodes=(), sets=None, digest=record.result.global_digest, state=None, state_digest=None)
        if record.exchange is None or not record.result.aggregated or not nodes:
            # Below quorum, or with nobody left, the sets stay.
            return nothing
        algorithm, sets = _changed_method(record, change, state)
        down = sets.only(algorithm.down)
        protected = protect(
            [update for update in record.updates if update.node in nodes],
            declared={
                outcome.node: outcome.declared_examples for outcome in record.result.outcomes if outcome.declared_examples is not None
            },
            down=down,
            uploads=algorithm.up,
            settings=record.plan.protection,
        )
        stated = {outcome.node: outcome.weight for outcome in record.result.outcomes}
        if any(stated.get(update.node) == 0 for update in protected.updates):
            suspects = nodes_on_probation(protected, down=down, uploads=algorithm.up, settings=record.plan.protection, tolerance=TOLERANCE)
            protected = leave_out(protected, [node for node in suspects if stated.get(node) == 0])
            protected = _without_culprits(record, protected, stated, is_recorded=not change.without)
        if len(protected.updates) < algorithm.min_updates:
            return nothing
        following = algorithm.aggregate(sets, protected.updates)
        sent, digest = _written(following.only(algorithm.down), scratch / "model.safetensors")
        names = [name for name in following if name not in algorithm.down]
        kept, state_digest = None, None
        if names:
            kept, state_digest = _written(following.only(names), scratch / f"state-{record.result.round_number}.safetensors")
        return _Computed(
            nodes=tuple(update.node for update in protected.updates),
            contributions=protected.contributions,
            sets=sent,
            digest=digest,
            state=kept,
            state_digest=state_digest,
            model=algorithm.whole_model(sent, None, sent[MODEL]),
        )


def _changed_method(record: RecordedRound, change: WhatIf, state: Sets | None) -> tuple[Algorithm, Sets]:
    """Return the method that is to aggregate a round, and the sets it begins with.

    Raises:
        SettingsError: the updates are not what that method works from.
    """
    assert record.exchange is not None, "a round without its model was not aggregated"  # noqa: S101 - the caller has looked
    recorded, sets = record.exchange.algorithm, record.sets
    if change.method is None:
        own = {} if state is None or not change.without else state
        return recorded, Sets({**sets, **own})
    settings = change.method.model_dump(exclude={"name"})
    algorithm = build_algorithm(change.method.name, settings, num_nodes=record.plan.num_nodes)
    if (algorithm.up, algorithm.down) != (recorded.up, recorded.down):
        raise SettingsError(
            f"{change.method.name} works from other sets than the recorded updates of {record.plan.method.name} hold: "
            "ask what if only of methods that exchange the same"
        )
    down = sets.only(recorded.down)
    start = algorithm.start(down[MODEL]) if state is None else state
    return algorithm, Sets({**{name: start[name] for name in start if name not in algorithm.down}, **down})


def _parted(record: RecordedRound) -> tuple[Sets, Sets | None]:
    """Return the sets that a round's nodes were sent, and those that stayed on the server."""
    sets = record.sets
    down = record.exchange.algorithm.down if record.exchange is not None else tuple(sets)
    others = [name for name in sets if name not in down]
    return sets.only(down), sets.only(others) if others else None


def _written(sets: Sets, path: Path) -> tuple[Sets, str]:
    """Write sets to a file; return them as they are read from it, and its digest."""
    tensors = flatten(sets)
    digest = write_params(path, tensors, signature=tensors.signature, durable=False)
    return sets_of(FileParams(path), tensors.signature), digest


def _without_culprits(record: RecordedRound, protected: Protected, stated: Mapping[str, int | None], *, is_recorded: bool) -> Protected:
    """Leave out whom the result of a round with a setback says was left out: there are no images here to find out anew."""
    culprits = [update.node for update in protected.updates if stated.get(update.node) == 0]
    if record.result.setback is None or not culprits:
        return protected
    if is_recorded and len(culprits) > max_culprits(len(protected.updates)):
        detail = f"it leaves out {len(culprits)} of {len(protected.updates)} updates for a setback: fewer than half may be"
        raise RecordError(record.result.round_number, "result.json", detail)
    return leave_out(protected, culprits)


def _check_contributions(record: RecordedRound, contributions: Sequence[Contribution]) -> None:
    """Raise unless the result says of each update what the protection makes of it."""
    stated = {outcome.node: (outcome.weight, outcome.distance) for outcome in record.result.outcomes}
    for contribution in contributions:
        if stated[contribution.node] != (contribution.weight, contribution.distance):
            detail = f"{contribution.node} counts for {contribution.weight} examples at distance {contribution.distance}"
            number = record.result.round_number
            raise RecordError(number, "result.json", f"{detail}, it says {stated[contribution.node][0]} at {stated[contribution.node][1]}")
