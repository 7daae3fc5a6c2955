"""Geometric median: the model whose distances to the nodes' models are the least in sum.

    w_{t+1} = argmin_w sum_k |w - w_k|
    by Weiszfeld's steps:  w <- sum_k beta_k * w_k / sum_k beta_k,   beta_k = 1 / max(nu, |w - w_k|)

Fewer than half of the updates, however wrong, can't carry it away: each pulls with the same force from however far. Whole models count,
not coordinates, so it turns with the coordinates as a mean does. Every node counts the same: the numbers of examples, which a node could
lie about, are not used.

Pillutla, Kakade and Harchaoui, "Robust Aggregation for Federated Learning", IEEE Transactions on Signal Processing 2022, algorithm 2,
with equal alpha_k.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum, sqrt
from statistics import median
from typing import ClassVar, Literal

import numpy as np

from federation.learning.algorithms.algorithm import Algorithm, NodeState, Trainer, Update
from federation.learning.algorithms.faulty import check_enough
from federation.learning.distances import products_about_median
from federation.learning.sets import Sets, TensorSet
from federation.params import Array

SMOOTHING = 1e-6
"""nu, in units of the models' median distance from their coordinate-wise median: where a model is nearer, it pulls no harder."""

LEAST_DISTANCE = 1e-30
"""nu where more than half of the models are one and the same."""

TOLERANCE = 1e-10
"""The steps end when no model's share changes by more."""

MAX_STEPS = 1000
"""They are of n^2 multiplications each: the models themselves are read twice in all."""


class GeometricMedian(Algorithm):
    """The point of least distances. Set down and up: model."""

    class Settings(Algorithm.Settings):
        """None of its own."""

        name: Literal["geometric_median"] = "geometric_median"

    min_updates: ClassVar = 3

    def train(self, trainer: Trainer, sets: Sets, node: NodeState) -> Update:  # noqa: ARG002 - the seam's signature
        """Return the trained model."""
        trained = trainer.fit(sets["model"])
        return trained.update(model=trained.model)

    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return the geometric median of the models.

        Raises:
            LocalProtocolError: fewer than three updates: of two, any point between them is one.
        """
        check_enough(updates, "geometric_median", self.min_updates)
        models = [update.sets["model"] for update in updates]
        shares = weiszfeld(products_about_median(models))

        def compute(name: str) -> Array:
            total: Array = np.asarray(models[0][name], dtype=np.float64) * shares[0]
            for model, share in zip(models[1:], shares[1:], strict=True):
                total = total + np.asarray(model[name], dtype=np.float64) * share
            return total

        return sets.with_sets(model=TensorSet.computed(models[0].signature, compute))


def weiszfeld(products: Sequence[Sequence[float]]) -> list[float]:
    """Return each point's share of the geometric median, from the points' inner products about a point near it.

    With w = sum_k s_k y_k, |w - y_k|^2 = |w|^2 - 2 <w, y_k> + |y_k|^2: no coordinates are needed. Sums are exact and rounded once.

    Args:
        products: n x n. Where the origin is near the median, points however far away cancel no digits of the near ones.
    """
    own = [products[k][k] for k in range(len(products))]
    nu = max(SMOOTHING * median(sqrt(square) for square in own), LEAST_DISTANCE)
    # No share at all is the origin: the steps begin at the coordinate-wise median.
    shares = [0.0] * len(products)
    for _ in range(MAX_STEPS):
        along = [fsum(share * product for share, product in zip(shares, row, strict=True)) for row in products]
        square = fsum(share * value for share, value in zip(shares, along, strict=True))
        distances = [sqrt(max(0.0, square - 2 * value + norm)) for value, norm in zip(along, own, strict=True)]
        pulls = [1 / max(nu, distance) for distance in distances]
        total = fsum(pulls)
        before, shares = shares, [pull / total for pull in pulls]
        if max(abs(new - old) for new, old in zip(shares, before, strict=True)) <= TOLERANCE:
            break
    return shares
