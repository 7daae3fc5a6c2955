"""Class-aware aggregation: each row of the classifier is averaged by who has seen its class.

    row_{t+1}[c] = sum_k v_kc * row_k[c] / sum_k v_kc,   v_kc = n_k * p_kc           p_kc: class c's share of node k's examples
    all other tensors: sum_k (n_k / n) * w_k

A node without a class never saw its row be right; under FedAvg it nevertheless counts in that row by all its examples, and a rare
class fades. The mean by counts is a prototype's mean over nodes: Tan et al., "FedProto: Federated Prototype Learning across
Heterogeneous Clients", AAAI 2022, section "Global prototype aggregation", taken of classifier rows instead of features.

A site may keep its counts to itself (`FEDMQ_SHARE_LABEL_COUNTS`): its examples are then taken to be mixed as those of the sites that
tell. If nobody tells, this is FedAvg. A class that nobody has is averaged as FedAvg does. Nodes are not told each other's counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from federation.errors import SettingsError
from federation.learning.algorithms.algorithm import Algorithm, NodeState, Trainer, Update, Upload, check_updates, mean
from federation.learning.algorithms.personal_layers import is_of
from federation.learning.sets import Sets, TensorSet
from federation.params import Array


class ClassAware(Algorithm):
    """FedAvg with a classifier averaged by class. Sets down: model, and the classes' names; up: model, and the node's class mix."""

    class Settings(Algorithm.Settings):
        """Where the classifier is."""

        name: Literal["class_aware"] = "class_aware"
        classifier: Annotated[str, Field(min_length=1, max_length=200)] = "output"
        """The last layer, as the network names it: one row of its tensors for each class."""

    settings: Settings
    down: ClassVar = ("model", "classes")
    up: ClassVar = {"model": Upload(), "classes": Upload(like="classes", is_difference=True)}

    def start(self, model: TensorSet) -> Sets:
        """Return the model and the classes.

        Raises:
            SettingsError: the network has no such layer, or not one row a class in all its tensors.
        """
        layer = self.settings.classifier
        heights = {spec.shape[0] if spec.shape else 0 for spec in model.signature if is_of(spec.name, layer)}
        if len(heights) != 1 or not min(heights):
            raise SettingsError(f"method.classifier: the network has no layer {layer!r} whose tensors have a row for each class")
        return Sets({"model": model, "classes": _mix_of(np.zeros(heights.pop()))})

    def train(self, trainer: Trainer, sets: Sets, node: NodeState) -> Update:  # noqa: ARG002 - the seam's signature
        """Return the trained model, and the roots of the classes' shares.

        The squares of roots of shares are 1 in sum: a set as long at every node, which no bound on lengths can meet. A site that tells
        nothing sends minus the roots of equal shares.
        """
        num_classes = len(sets["classes"])
        counts = trainer.label_counts
        if counts is None:
            roots = np.full(num_classes, -1 / sqrt(num_classes))
        else:
            roots = np.sqrt(np.asarray(counts, dtype=np.float64) / sum(counts))
        trained = trainer.fit(sets["model"])
        return trained.update(model=trained.model, classes=_mix_of(roots))

    def aggregate(self, sets: Sets, updates: Sequence[Update]) -> Sets:
        """Return the mean of the models, the classifier's by class."""
        check_updates(updates)
        average, layer = mean(updates, "model", weights="examples"), self.settings.classifier
        weights = class_weights(updates)
        models = [update.sets["model"] for update in updates]

        def compute(name: str) -> Array:
            if not is_of(name, layer):
                return average.exact(name)
            total = np.zeros(models[0][name].shape, dtype=np.float64)
            for model, shares in zip(models, weights, strict=True):
                total += model[name] * shares.reshape((-1, *(1,) * (total.ndim - 1)))
            return total

        return sets.with_sets(model=TensorSet.computed(average.signature, compute))


def class_weights(updates: Sequence[Update]) -> list[Array]:
    """Return how much each update counts for each class: float64, of the number of classes; 1 in sum over the updates."""
    examples = [float(update.num_examples) for update in updates]
    mixes = [_shares_of(update.sets["classes"]) for update in updates]
    told = [(count, mix) for count, mix in zip(examples, mixes, strict=True) if mix is not None]
    num_told = sum(count for count, _ in told)
    usual = sum((count * mix for count, mix in told), np.zeros(len(updates[0].sets["classes"]))) / num_told if told else 1.0
    held = [
        count * (usual if mix is None else mix) + np.zeros(len(updates[0].sets["classes"]))
        for count, mix in zip(examples, mixes, strict=True)
    ]
    total = sum(held, np.zeros_like(held[0]))
    by_examples = sum(examples)
    return [
        np.where(total > 0, part / np.where(total > 0, total, 1.0), count / by_examples) for part, count in zip(held, examples, strict=True)
    ]


def _mix_of(roots: Array) -> TensorSet:
    # A tensor a class, so that a codec that leaves small values out leaves none of these out.
    return TensorSet({_class_name(index): np.array([root], np.float32) for index, root in enumerate(roots)})


def _shares_of(mix: TensorSet) -> Array | None:
    """Return a node's shares of the classes, 1 in sum; None where it tells nothing."""
    roots = np.array([float(mix[_class_name(index)][0]) for index in range(len(mix))])
    squares = np.square(roots)
    if (roots < 0).any() or not squares.sum() > 0:
        return None
    shares: Array = squares / squares.sum()
    return shares


def _class_name(index: int) -> str:
    return f"class.{index}"
