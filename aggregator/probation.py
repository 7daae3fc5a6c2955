"""Probation: an update that moves the model further than the others do, or another way, is tried on the server's images before it counts.

    d_k = w_k - w,  u_k = d_k / |d_k|
    on probation, of three updates or more:  n_k |d_k| > max_trusted_ratio * median_j n_j |d_j|
                                     or  cos(u_k, sum_{j != k} u_j) < min_agreement
    left out:  accuracy(w' without k) - accuracy(w') > max_harm, and its loss is smaller

A large honest node has a large influence, and so has one that lies about its size or turns its update round tenfold; sizes
don't tell them apart, the model they make does. In honest rounds of similar nodes nobody is on probation and nothing is
evaluated twice. `fedmq replay` has no images: it leaves out whom the signed result says was, and nobody who was not
on probation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from math import sqrt
from statistics import median

import numpy as np

from aggregator.protection import MIN_FOR_MEDIAN, Contribution, Protected
from federation.learning.algorithms import Update, Upload
from federation.learning.sets import MODEL, Sets
from federation.messages import Evaluation
from federation.params import Array
from federation.settings import ProtectionSettings

MAX_TRIALS = 10
"""In one round, the greatest influence first: each costs an evaluation."""

TOLERANCE = 1e-4
"""Of a cosine and of an influence: another processor may have computed a replay's a little differently."""

MIN_SQUARE = 1e-4
"""Of the sum of the others' unit steps: below it they cancel each other out, and there is no direction to agree with."""


def nodes_on_probation(
    protected: Protected,
    *,
    down: Sets,
    uploads: Mapping[str, Upload],
    settings: ProtectionSettings | None,
    tolerance: float = 0.0,
) -> list[str]:
    """Return the nodes whose updates must be tried, the greatest influence first.

    Args:
        protected: a round's updates within their bounds; each tensor is read twice.
        down: the sets the updates were trained from.
        uploads: what the sets of an update are.
        settings: the run's.
        tolerance: of each bound: 0 decides, a little more tells who may have been decided about elsewhere.
    """
    counting = [contribution for contribution in protected.contributions if contribution.weight]
    if settings is None or len(counting) < MIN_FOR_MEDIAN:
        return []
    bound = settings.max_trusted_ratio * median(map(_influence, counting))
    agreement = agreements(protected, down, uploads)
    suspects = [
        entry
        for entry in counting
        if _influence(entry) > bound * (1.0 - tolerance) or agreement[entry.node] < settings.min_agreement + tolerance
    ]
    suspects.sort(key=lambda entry: (-_influence(entry), entry.node))
    return [entry.node for entry in suspects[:MAX_TRIALS]]


def agreements(protected: Protected, down: Sets, uploads: Mapping[str, Upload]) -> dict[str, float]:
    """Return the cosine of each update's step of the model with the sum of the others' unit steps; 1 where there is no step to compare.

    In float32 and by BLAS, which is ten times as fast as sums that are the same everywhere: good to about 1e-5.
    """
    lengths = {entry.node: entry.distance for entry in protected.contributions}
    moved = [update for update in protected.updates if lengths[update.node] > 0]
    along, total_square = dict.fromkeys(lengths, 0.0), 0.0
    start = None if uploads[MODEL].is_difference else down[uploads[MODEL].like]
    for spec in down[uploads[MODEL].like].signature:
        name, total = spec.name, np.zeros(spec.shape, np.float32)
        from_values = start[name] if start is not None else None
        for update in moved:
            total += _unit_step(update, name, from_values, lengths)
        total_square += float(np.vdot(total, total))
        for update in moved:
            along[update.node] += float(np.vdot(_unit_step(update, name, from_values, lengths), total))
    found = dict.fromkeys(lengths, 1.0)
    for update in moved:
        # u_k (S - u_k) / |S - u_k|, where u_k is a unit vector.
        others_square = total_square - 2.0 * along[update.node] + 1.0
        if others_square > MIN_SQUARE:
            found[update.node] = (along[update.node] - 1.0) / sqrt(others_square)
    return found


def try_updates(
    protected: Protected,
    *,
    down: Sets,
    uploads: Mapping[str, Upload],
    aggregate: Callable[[Sequence[Update]], Sets],
    evaluate: Callable[[Sets], Evaluation | None],
    settings: ProtectionSettings | None,
    min_updates: int,
) -> Protected:
    """Leave out the updates on probation without which the model is better.

    Args:
        protected: a round's updates within their bounds.
        down: the sets they were trained from.
        uploads: what the sets of an update are.
        aggregate: the run's method: updates into the next sets.
        evaluate: on the server's images; where it has none, or the method no model there, nobody is left out.
        settings: the run's.
        min_updates: so many stay in any case.
    """
    suspects = nodes_on_probation(protected, down=down, uploads=uploads, settings=settings)
    if settings is None or not suspects:
        return protected
    now = evaluate(aggregate(protected.updates))
    for node in suspects:
        others = [update for update in protected.updates if update.node != node]
        if now is None or len(others) < max(1, min_updates):
            break
        then = evaluate(aggregate(others))
        if then is not None and then.accuracy - now.accuracy > settings.max_harm and then.loss < now.loss:
            reason = (
                "left out: it moves the model further than the others, or another way, and without it the accuracy on the server's images "
                f"is {then.accuracy:.4f}, not {now.accuracy:.4f}"
            )
            protected, now = leave_out(protected, {node}, reason), then
    return protected


def leave_out(protected: Protected, nodes: Collection[str], reason: str = "") -> Protected:
    """Return a round's updates without those of some nodes."""
    return Protected(
        updates=tuple(update for update in protected.updates if update.node not in nodes),
        contributions=tuple(replace(entry, weight=0, reason=reason) if entry.node in nodes else entry for entry in protected.contributions),
    )


def _unit_step(update: Update, name: str, from_values: Array | None, lengths: Mapping[str, float]) -> Array:
    values = update.sets[MODEL][name]
    step: Array = np.array(values) if from_values is None else np.subtract(values, from_values)
    step *= np.float32(1.0 / lengths[update.node])
    return step


def _influence(contribution: Contribution) -> float:
    return contribution.weight * contribution.distance
