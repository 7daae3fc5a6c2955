"""Local training as a method sees it: begin with these weights, train on this node's images, say what came of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from torch import nn

from federation import models
from federation.learning.algorithms import Trained
from federation.learning.sets import TensorSet
from federation.training import TrainingTask, never, train


class LocalTrainer:
    """Trains on one node's images in one round. Implements `federation.learning.algorithms.Trainer`.

    Args:
        task: what to train on and how; its weights, pull and offset are replaced by what `fit` is given.
        should_stop: asked before every batch.
        module: a network to reuse instead of building one; it ends holding the trained weights.
        shares_label_counts: whether methods may send how many examples of each class this node has.
    """

    def __init__(
        self,
        task: TrainingTask,
        *,
        should_stop: Callable[[], bool] = never,
        module: nn.Module | None = None,
        shares_label_counts: bool = True,
    ) -> None:
        self._task = task
        self._shares_label_counts = shares_label_counts
        self._should_stop = should_stop
        self._module = module

    @cached_property
    def initial(self) -> TensorSet:
        """The whole network from the run's seed."""
        return initial_model(self._task)

    @property
    def label_counts(self) -> Sequence[int] | None:
        """How many examples of each class this node trains on; None where its site keeps that to itself."""
        if not self._shares_label_counts:
            return None
        counts: list[int] = np.bincount(self._task.images.labels, minlength=self._task.num_classes).tolist()
        return counts

    def fit(
        self,
        start: TensorSet,
        *,
        proximal_mu: float = 0.0,
        gradient_offset: TensorSet | None = None,
        only: Collection[str] | None = None,
        local_epochs: int | None = None,
    ) -> Trained:
        """Train for the round's local epochs; the same arguments give the same bits.

        Raises:
            TrainingCancelled, TrainingDivergedError, DataError, SettingsError: as `federation.training.train`.
        """
        training = self._task.training
        task = replace(
            self._task,
            global_params=start,
            proximal_mu=proximal_mu,
            gradient_offset=gradient_offset,
            only=frozenset(only) if only is not None else None,
            training=training if local_epochs is None else training.model_copy(update={"local_epochs": local_epochs}),
        )
        outcome = train(task, should_stop=self._should_stop, module=self._module)
        return Trained(
            node=task.node,
            model=TensorSet(outcome.params, start.signature),
            num_examples=outcome.num_examples,
            num_steps=outcome.num_steps,
            learning_rate=task.learning_rate,
            total_step=outcome.total_step,
            loss=outcome.loss,
            seconds=outcome.seconds,
            samples_per_second=outcome.samples_per_second,
        )


def initial_model(task: TrainingTask) -> TensorSet:
    """Return the network as the aggregator and every node begin with it."""
    return TensorSet(models.parameters_of(models.build(task.model, task.images.image_shape, task.num_classes, task.seed)))
