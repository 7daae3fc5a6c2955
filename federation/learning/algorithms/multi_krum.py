"""Multi-Krum: the mean of the models that lie nearest to most of the others.

    score(k) = sum of |w_k - w_j|^2 over the n - f - 2 models j nearest to k
    w_{t+1} = mean of w_k over the n - f models of the least scores

f is how many updates may be wrong; it takes n >= 2 f + 3. Every node chosen counts the same: the numbers of examples, which a
node could lie about, are not used.

Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", NeurIPS 2017, sections 4 and 6.
The paper leaves open how many are averaged; n - f takes all but as many as may be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from federation.learning.algorithms.algorithm import Algorithm, NodeState, Trainer, Update, mean
from federation.learning.algorithms.faulty import check_enough
from federation.learning.algorithms.krum import MIN_UPDATES, by_centrality, faulty_of
from federation.learning.sets import Sets


class MultiKrum(Algorithm):
    """The mean of the most central models. Set down and up: model."""

    class Settings(Algorithm.Settings):
        """How many updates may be wrong."""

        name: Literal["multi_krum"] = "multi_krum"
        faulty_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
        """Of the updates, rounded down: f; from 1 to (n - 3) / 2."""

    settings: Settings
    min_updates: ClassVar = MIN_UPDATES

    def train(self, trainer: Trainer, sets: Sets, node: NodeState) -> Update:  # noqa: ARG002 - the seam's signature
        """Return the trained model."""
        trained = trainer.fit(sets["model"])
        return trained.update(model=trained.model)

    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return the mean of the most central models.

        Raises:
            LocalProtocolError: fewer than five updates.
        """
        check_enough(updates, self.settings.name, self.min_updates)
        share = self.settings.faulty_share
        chosen = by_centrality(updates, faulty_share=share)[: len(updates) - faulty_of(updates, share)]
        return sets.with_sets(model=mean(sorted(chosen, key=lambda update: update.node), "model", weights="equal"))
