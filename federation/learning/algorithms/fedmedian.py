"""FedMedian: the median of the trained models, coordinate by coordinate.

    w_{t+1}[j] = median{ w_k[j] : k in the cohort }

Fewer than half of the updates, however wrong, can't move a coordinate outside the others' range. Every node
counts the same: the numbers of examples, which a node could lie about, are not used.

Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018, definition 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from federation.errors import LocalProtocolError
from federation.learning.algorithms.algorithm import Algorithm, NodeState, Trainer, Update, check_updates
from federation.learning.sets import Sets, TensorSet
from federation.params import Array


class FedMedian(Algorithm):
    """Coordinate-wise median. Set down and up: model."""

    min_updates: ClassVar[int] = 3
    """Of two, the median is the mean, which one of them moves at will."""

    class Settings(Algorithm.Settings):
        """None of its own."""

        name: Literal["fedmedian"] = "fedmedian"

    def train(self, trainer: Trainer, sets: Sets, node: NodeState) -> Update:  # noqa: ARG002 - the seam's signature
        """Return the trained model."""
        trained = trainer.fit(sets["model"])
        return trained.update(model=trained.model)

    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return the median of the models; of an even number, the mean of the middle two.

        Raises:
            LocalProtocolError: fewer than three updates: of two the median is the mean, which one of them moves at will.
        """
        check_updates(updates)
        if len(updates) < self.min_updates:
            raise LocalProtocolError(f"fedmedian needs {self.min_updates} updates or more, there are {len(updates)}")
        models = [update.sets["model"] for update in updates]

        def compute(name: str) -> Array:
            median: Array = np.median(np.stack([np.asarray(model[name], dtype=np.float64) for model in models]), axis=0)
            return median

        return sets.with_sets(model=TensorSet.computed(models[0].signature, compute))
