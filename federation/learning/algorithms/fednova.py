"""FedNova: nodes that took more steps count no more for it.

    d_k = (w_k - w_t) / a_k                                    what node k's steps did, per step
    w_{t+1} = w_t + (sum_k p_k * a_k) * sum_k p_k * d_k         p_k = n_k / n

Under FedAvg a node with ten times the steps draws the model towards an optimum of its own; here all nodes' directions count
by their examples alone. a_k is how far the optimiser carries a constant gradient, in learning rates: the number of steps of
plain SGD, more with momentum (`Trained.total_step`); the paper's ||a_k||_1.

Wang et al., "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", NeurIPS 2020,
equations 4 and 8 with tau_eff = sum_k p_k * ||a_k||_1. It takes the loss to have no proximal term, and the optimiser no decay.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low
from typing import ClassVar, Literal

import numpy as np

from federation.learning.algorithms.algorithm import Algorithm, NodeState, Trainer, Update, Upload, check_updates, mean
from federation.learning.algorithms.batch_norm import with_averaged_statistics
from federation.learning.sets import Sets, TensorSet

MAX_STEPS_RATIO = 20.0
"""A node's steps count for so many times the median over the round's updates at most, as `protection.max_weight_ratio` bounds
weights: the sum of the steps scales the global model's step, and a node could claim any number."""

MIN_INVERSE = 1e-9
"""Of a billion steps; a claim of none, or of fewer, counts as that."""


class FedNova(Algorithm):
    """Normalised averaging. Sets down: model, steps; up: the model's change per step, and one over the number of steps."""

    class Settings(Algorithm.Settings):
        """None of its own."""

        name: Literal["fednova"] = "fednova"

    down: ClassVar = ("model", "steps")
    up: ClassVar = {"model": Upload(is_difference=True), "steps": Upload(like="steps", is_difference=True)}
    needs_sgd: ClassVar = True

    def start(self, model: TensorSet) -> Sets:
        """Return the model, and no steps yet."""
        return Sets({"model": model, "steps": {"inverse": np.zeros(1, np.float32)}})

    def train(self, trainer: Trainer, sets: Sets, node: NodeState) -> Update:  # noqa: ARG002 - the seam's signature
        """Return what one step did on average, and one over how many there were: never more than 1, whatever the recipe."""
        start = sets["model"]
        trained = trainer.fit(start)
        num_steps = trained.total_step / trained.learning_rate
        change = trained.model - start
        per_step = with_averaged_statistics(change / num_steps, change)
        return trained.update(model=per_step, steps=TensorSet({"inverse": np.array([1 / num_steps], np.float32)}))

    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return the model after the nodes' mean number of their mean step; statistics of batch normalisation are averaged."""
        check_updates(updates)
        steps = [1 / max(float(update.sets["steps"]["inverse"][0]), MIN_INVERSE) for update in updates]
        most = MAX_STEPS_RATIO * median_low(steps)
        weights = [update.num_examples for update in updates]
        num_steps = sum(weight * min(count, most) for weight, count in zip(weights, steps, strict=True)) / sum(weights)
        change = mean(updates, "model", weights="examples")
        step = with_averaged_statistics(change * num_steps, change)
        return sets.plus(model=step).with_sets(steps=TensorSet({"inverse": np.array([1 / num_steps], np.float32)}))
