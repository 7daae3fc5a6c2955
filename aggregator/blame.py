"""Which node harms a run: every round once more without each of its nodes, and what that changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from aggregator.replay import Changed, Replay, WhatIf
from federation.messages import Evaluation, NodeOutcome
from federation.params import Params


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """What one node's removal would have changed, each round taken for itself."""

    node: str
    num_rounds: int
    """Rounds in which its update was aggregated."""
    accuracy_gain: float
    """Mean over them of the accuracy without it minus the accuracy with it, as a share; positive: it harms."""
    loss_gain: float
    """Mean over them of the loss with it minus the loss without it, in nats."""
    worst_round: int | None
    """The round in which its removal helps most."""
    num_left_out: int
    """Rounds in which the protection left its update out."""
    num_lowered: int
    """Rounds in which the protection lowered its weight."""
    num_rejected: int
    """Rounds in which its update was refused."""


def blame(replay: Replay, round_numbers: Sequence[int], evaluate: Callable[[Params], Evaluation]) -> list[Blame]:
    """Return every node that was drawn, the one whose removal helps most first.

    A node's removal is judged by the rounds in which it was aggregated and others are left; one that the protection kept out did no
    harm, and is listed with how often that was.

    Args:
        replay: of the run.
        round_numbers: which rounds, in order.
        evaluate: how good a model is, on the server's own images.

    Raises:
        ArchiveError: a record can't be trusted.
    """
    outcomes: dict[str, list[NodeOutcome]] = {}
    for changed in replay.what_if(round_numbers, WhatIf(), None):
        for outcome in changed.result.outcomes:
            outcomes.setdefault(outcome.node, []).append(outcome)
    found = [
        _blame_of(node, outcomes[node], list(replay.what_if(round_numbers, WhatIf(without={node}), evaluate))) for node in sorted(outcomes)
    ]
    return sorted(found, key=lambda entry: (-entry.accuracy_gain, -entry.loss_gain, entry.node))


def _blame_of(node: str, outcomes: Sequence[NodeOutcome], rounds: Sequence[Changed]) -> Blame:
    accuracy_gains, loss_gains = {}, {}
    for changed in rounds:
        recorded, without = changed.result.evaluation, changed.evaluation
        is_in = any(outcome.node == node and outcome.outcome == "accepted" and outcome.weight != 0 for outcome in changed.result.outcomes)
        if is_in and recorded is not None and without is not None:
            accuracy_gains[changed.round_number] = without.accuracy - recorded.accuracy
            loss_gains[changed.round_number] = recorded.loss - without.loss
    return Blame(
        node=node,
        num_rounds=len(accuracy_gains),
        accuracy_gain=fmean(accuracy_gains.values()) if accuracy_gains else 0.0,
        loss_gain=fmean(loss_gains.values()) if loss_gains else 0.0,
        worst_round=max(accuracy_gains, key=lambda number: (accuracy_gains[number], loss_gains[number]), default=None),
        num_left_out=sum(outcome.weight == 0 for outcome in outcomes),
        num_lowered=sum(bool(outcome.weight) and bool(outcome.protection) for outcome in outcomes),
        num_rejected=sum(outcome.outcome == "rejected" for outcome in outcomes),
    )
