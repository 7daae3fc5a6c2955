"""Trimmed mean: of each coordinate the largest and smallest values are left out, the others averaged.

    b = max(1, floor(beta * n)), at most floor((n - 1) / 2)
    w_{t+1}[j] = mean of w_k[j] over all k but those of the b largest and the b smallest values

Up to b updates, however wrong, can't move a coordinate outside the others' range. It averages more of the honest values than the
median does. Every node counts the same: the numbers of examples, which a node could lie about, are not used.

Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, definition 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from federation.learning.algorithms.algorithm import Algorithm, NodeState, Trainer, Update
from federation.learning.algorithms.faulty import check_enough, num_faulty
from federation.learning.sets import Sets, TensorSet
from federation.params import Array


class TrimmedMean(Algorithm):
    """Coordinate-wise trimmed mean. Set down and up: model."""

    class Settings(Algorithm.Settings):
        """How much is left out."""

        name: Literal["trimmed_mean"] = "trimmed_mean"
        faulty_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
        """Beta: this share of a coordinate's values is left out at either end, one at least."""

    settings: Settings
    min_updates: ClassVar = 3

    def train(self, trainer: Trainer, sets: Sets, node: NodeState) -> Update:  # noqa: ARG002 - the seam's signature
        """Return the trained model."""
        trained = trainer.fit(sets["model"])
        return trained.update(model=trained.model)

    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return the trimmed mean of the models.

        Raises:
            LocalProtocolError: fewer than three updates: nothing would be left between the ends.
        """
        check_enough(updates, self.settings.name, self.min_updates)
        models = [update.sets["model"] for update in updates]
        cut = num_faulty(self.settings.faulty_share, len(models), most=(len(models) - 1) // 2)

        def compute(name: str) -> Array:
            ordered = np.sort(np.stack([np.asarray(model[name], dtype=np.float64) for model in models]), axis=0)
            kept = ordered[cut : len(models) - cut]
            total = np.zeros(ordered.shape[1:], dtype=np.float64)
            for values in kept:
                total = total + values
            return total / len(kept)

        return sets.with_sets(model=TensorSet.computed(models[0].signature, compute))
