"""The protection of the server: how far and with what weight one node's update may move the global model.

    |w_k - w| <= max_model_ratio * |w|                         of every update
    |w_k - w| <= max_distance_ratio * median_j |w_j - w|       of three or more
    n_k       <= declared_k, max_examples                      of every update
    n_k       <= max_weight_ratio * median_j n_j               of three or more

An update too far away is left out, a weight too large is lowered. It runs before the method, and `fedmq replay` runs
it again: pure, from the updates, the global model, the plan's settings and what the nodes had declared. A bound by
the cohort's median needs three updates: of two, the lying one would be half of the median.

Sun et al., "Can You Really Backdoor Federated Learning?", 2019 (bounded norms); Yin et al., ICML 2018 (the median).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor
from statistics import median

from federation.learning.algorithms import Update, Upload
from federation.learning.distances import distance, norm
from federation.learning.sets import MODEL, Sets, TensorSet
from federation.settings import ProtectionSettings

MIN_FOR_MEDIAN = 3
"""Updates of which one lying node can't make the median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What the protection made of one update."""

    node: str
    weight: int
    """Examples it counts for; 0: it is left out."""
    distance: float
    """Euclidean, from the round's global model."""
    reason: str = ""
    """Why it counts for less than it claimed, as a sentence; empty where it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protected:
    """A round's updates as the method may see them."""

    updates: tuple[Update, ...]
    """In the order given, without those that were left out, with the weights they may have."""
    contributions: tuple[Contribution, ...]
    """Of every update, in the order given."""


def protect(
    updates: Sequence[Update],
    *,
    declared: Mapping[str, int],
    down: Sets,
    uploads: Mapping[str, Upload],
    settings: ProtectionSettings | None,
) -> Protected:
    """Bound what each update may do.

    Args:
        updates: in node order, of the method's sets, every value finite; each tensor is read once.
        declared: how many examples each node said it has, where it did.
        down: the sets the updates were trained from.
        uploads: what the sets of an update are.
        settings: the run's; None: a run led before there was a protection, nothing is bounded.
    """
    if settings is None:
        return Protected(updates=tuple(updates), contributions=())
    distances = {update.node: {name: _size(update.sets[name], uploads[name], down) for name in uploads} for update in updates}
    model_norm = norm(down[MODEL])
    # Each set by itself: a control variate and a model have no common unit.
    bounds = {name: _bound_of([sizes[name] for sizes in distances.values()], model_norm, settings) for name in uploads}
    excess = {node: next((name for name in sorted(sizes) if not sizes[name] <= bounds[name][0]), "") for node, sizes in distances.items()}
    claims = {update.node: _claim(update, declared, settings) for update in updates if not excess[update.node]}
    most = max(claims.values(), default=0)
    if len(claims) >= MIN_FOR_MEDIAN:
        most = floor(settings.max_weight_ratio * median(claims.values()))
    kept, contributions = [], []
    for update in updates:
        far = distances[update.node][MODEL]
        if name := excess[update.node]:
            bound, why = bounds[name]
            what = "its distance from the global model" if name == MODEL else f"the size of its {name}"
            reason = f"left out: {what}, {distances[update.node][name]:.4g}, is more than {bound:.4g}, {why}"
            contributions.append(Contribution(node=update.node, weight=0, distance=far, reason=reason))
            continue
        weight = min(claims[update.node], most)
        reason = "" if weight == update.num_examples else f"counted with {weight} examples, not the {update.num_examples} it claims"
        contributions.append(Contribution(node=update.node, weight=weight, distance=far, reason=reason))
        kept.append(replace(update, num_examples=weight))
    return Protected(updates=tuple(kept), contributions=tuple(contributions))


def _size(tensors: TensorSet, upload: Upload, down: Sets) -> float:
    """Return how large a change is, or how far what is no change lies from what it is like."""
    return norm(tensors) if upload.is_difference else distance(tensors, down[upload.like])


def _bound_of(distances: Sequence[float], model_norm: float, settings: ProtectionSettings) -> tuple[float, str]:
    """Return how far an update may be, and by what rule."""
    by_model = settings.max_model_ratio * model_norm
    by_cohort = settings.max_distance_ratio * median(distances) if len(distances) >= MIN_FOR_MEDIAN else float("inf")
    if by_cohort < by_model:
        return by_cohort, f"{settings.max_distance_ratio:g} times the updates' median"
    return by_model, f"{settings.max_model_ratio:g} times the model's own norm"


def _claim(update: Update, declared: Mapping[str, int], settings: ProtectionSettings) -> int:
    """Return the weight an update may have by its own node's word; 1 at least, for the sum of weights divides."""
    return max(1, min(update.num_examples, declared.get(update.node, update.num_examples), settings.max_examples))
