"""Krum: the one model that lies nearest to most of the others.

    score(k) = sum of |w_k - w_j|^2 over the n - f - 2 models j nearest to k
    w_{t+1} = w_k of the least score

f is how many updates may be wrong; it takes n >= 2 f + 3. The global model is one node's own: it forgets what the others learnt,
and shows that node's to all. `multi_krum` averages several.

Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import fsum
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from federation.learning.algorithms.algorithm import Algorithm, NodeState, Trainer, Update
from federation.learning.algorithms.faulty import check_enough, num_faulty
from federation.learning.distances import squared_distances
from federation.learning.sets import Sets

MIN_UPDATES = 5
"""2 f + 3 of one faulty update."""


class Krum(Algorithm):
    """The most central model. Set down and up: model."""

    class Settings(Algorithm.Settings):
        """How many updates may be wrong."""

        name: Literal["krum"] = "krum"
        faulty_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
        """Of the updates, rounded down: f; from 1 to (n - 3) / 2."""

    settings: Settings
    min_updates: ClassVar = MIN_UPDATES

    def train(self, trainer: Trainer, sets: Sets, node: NodeState) -> Update:  # noqa: ARG002 - the seam's signature
        """Return the trained model."""
        trained = trainer.fit(sets["model"])
        return trained.update(model=trained.model)

    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return the most central model.

        Raises:
            LocalProtocolError: fewer than five updates.
        """
        check_enough(updates, self.settings.name, self.min_updates)
        central = by_centrality(updates, faulty_share=self.settings.faulty_share)[0]
        return sets.with_sets(model=central.sets["model"])


def by_centrality(updates: Sequence[Update], *, faulty_share: float) -> list[Update]:
    """Return the updates in the order of their scores, the most central first; of equal scores, in node order.

    Args:
        updates: five at least.
        faulty_share: of them, how many may be wrong.
    """
    num_near = len(updates) - faulty_of(updates, faulty_share) - 2
    squares = squared_distances([update.sets["model"] for update in updates])
    scores = [fsum(sorted(row[:k] + row[k + 1 :])[:num_near]) for k, row in enumerate(squares)]
    return [updates[k] for k in sorted(range(len(updates)), key=lambda k: (scores[k], k))]


def faulty_of(updates: Sequence[Update], share: float) -> int:
    """Return f of Krum."""
    return num_faulty(share, len(updates), most=(len(updates) - 3) // 2)
