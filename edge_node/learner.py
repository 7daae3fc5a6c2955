"""This node's images and what is learnt from them: no wire, no time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edge_node.config import EdgeNodeConfig
from edge_node.work import LocalUpdate
from federation import models
from federation.data import Dataset, ImageSet, Indices, load_dataset
from federation.errors import DataError, LocalProtocolError
from federation.evaluation import evaluate
from federation.learning.algorithms import Algorithm, NodeState, build_algorithm
from federation.learning.sets import MODEL, Sets, TensorSet
from federation.learning.trainer import LocalTrainer
from federation.messages import Evaluation, RoundPlan
from federation.partition import hold_out, split
from federation.settings import DataSettings, PartitionSettings, load_run_file
from federation.training import TrainingTask


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeData:
    """What a node trains and validates on."""

    training: ImageSet
    validation: ImageSet | None
    class_names: tuple[str, ...]

    @property
    def num_examples(self) -> int:
        """Training and validation images together."""
        return len(self.training) + (len(self.validation) if self.validation else 0)


def load_node_data(config: EdgeNodeConfig, *, progress: bool = False) -> NodeData:
    """Return this node's images: its own, or its part of a simulated partition.

    Raises:
        SettingsError: the run file is wrong.
        DataError: the images can't be used, or the partition has no such part.
    """
    if config.run_file is not None and config.partition_index is not None:
        settings = load_run_file(config.run_file)
        dataset = load_dataset(settings.data, data_dir=config.data_dir, cache_dir=config.cache_dir, progress=progress)
        return partition_part(dataset, settings.partition, config.partition_index)
    own = DataSettings(name=config.data or "", size=config.data_size, class_names=config.class_names)
    dataset = load_dataset(own, data_dir=config.data_dir, cache_dir=config.cache_dir, progress=progress)
    return _hold_out(dataset, np.arange(len(dataset.train)), PartitionSettings())


def partition_part(dataset: Dataset, partition: PartitionSettings, index: int) -> NodeData:
    """Return part `index` (from 0) of a partitioned data set.

    Raises:
        DataError: the partition can't be made, or has no such part.
    """
    parts = split(dataset.train.labels, partition)
    if index >= len(parts):
        raise DataError(
            f"the partition has {len(parts)} parts, there is no part {index}: raise partition.num_nodes or lower FEDMQ_PARTITION_INDEX"
        )
    return _hold_out(dataset, parts[index], partition)


def _hold_out(dataset: Dataset, indices: Indices, partition: PartitionSettings) -> NodeData:
    training, validation = hold_out(dataset.train.labels, indices, partition.validation_share, partition.seed)
    return NodeData(
        training=dataset.train.take(training),
        validation=dataset.train.take(validation) if len(validation) else None,
        class_names=dataset.class_names,
    )


class LocalLearner:
    """Trains updates on this node's images; keeps one network and fills it anew each round.

    Args:
        node: this node's name; with seed and round it seeds every random number.
        data: what to train and validate on; None when this node has no usable images.
        shares_label_counts: whether a method may send how many examples of each class are here.
    """

    def __init__(self, *, node: str, data: NodeData | None, shares_label_counts: bool = True) -> None:
        self._node = node
        self._shares_label_counts = shares_label_counts
        self._data = data

    def train(self, plan: RoundPlan, sets: Sets, kept: NodeState, should_stop: Callable[[], bool]) -> LocalUpdate:
        """Validate the global model, then let the round's method train.

        Raises:
            TrainingCancelled: `should_stop` returned true.
            DataError: this node has no usable images.
            FedMQError: the global model does not fit the plan, or training can't be done here.
        """
        if self._data is None:
            raise DataError("this node has no usable images")
        images, num_classes = self._data.training, len(self._data.class_names)
        module = models.build(plan.model, images.image_shape, num_classes, seed=0)
        trainer = LocalTrainer(
            self._task(plan, self._data, sets),
            should_stop=should_stop,
            module=module,
            shares_label_counts=self._shares_label_counts,
        )
        algorithm = _algorithm_of(plan)
        validation: Evaluation | None = None
        if self._data.validation is not None:
            model = algorithm.whole_model(sets, kept, trainer.initial)
            if model is not None:
                models.load_parameters(module, model)
                validation = evaluate(module, self._data.validation, num_classes)
        update = algorithm.train(trainer, sets, kept)
        if update.trained is None:
            raise LocalProtocolError(f"{plan.method.name} returned an update without saying how it was trained")
        return LocalUpdate(
            sets=update.sets,
            num_examples=update.num_examples,
            loss=update.trained.loss,
            train_seconds=update.trained.seconds,
            samples_per_second=update.trained.samples_per_second,
            validation_accuracy=validation.accuracy if validation else None,
            validation_loss=validation.loss if validation else None,
            validation_class_accuracy=validation.class_accuracy if validation else (),
        )

    def whole_model(self, plan: RoundPlan, sets: Sets, kept: NodeState) -> TensorSet | None:
        """Return the model that makes predictions on this node; None where there is none."""
        if self._data is None:
            return sets[MODEL]
        return _algorithm_of(plan).whole_model(sets, kept, LocalTrainer(self._task(plan, self._data, sets)).initial)

    def _task(self, plan: RoundPlan, data: NodeData, sets: Sets) -> TrainingTask:
        return TrainingTask(
            global_params=sets[MODEL],
            images=data.training,
            num_classes=len(data.class_names),
            model=plan.model,
            training=plan.training,
            learning_rate=plan.learning_rate,
            proximal_mu=0.0,
            seed=plan.seed,
            round_number=plan.round_number,
            node=self._node,
        )


def _algorithm_of(plan: RoundPlan) -> Algorithm:
    return build_algorithm(plan.method.name, plan.method.settings, num_nodes=plan.num_nodes)
