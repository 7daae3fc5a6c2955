"""The trainer that methods see: hooks on the gradient, and what it says of its steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from federation import models
from federation.learning.algorithms import build_algorithm
from federation.learning.optimisers import total_step
from federation.learning.sets import Sets, TensorSet
from federation.learning.trainer import LocalTrainer
from federation.settings import TrainingSettings
from federation.training import TrainingTask, train
from tests.learning.small_tasks import digest_of, learnable_images, training_task

PLAIN: dict[str, Any] = {"momentum": 0.0, "batch_size": 16}


def task_of(num_examples: int = 32, **changes: Any) -> TrainingTask:
    return training_task(learnable_images(num_examples), training={**PLAIN, **changes})


def constant(tensors: TensorSet, value: float) -> TensorSet:
    return tensors.zeros().map(lambda zeros: zeros + value)


def test_fedavg_and_fedprox_train_as_the_plain_loop_does() -> None:
    task = task_of(local_epochs=2)
    start = TensorSet(task.global_params)
    for name, settings, mu in (("fedavg", {}, 0.0), ("fedprox", {"mu": 0.5}, 0.5)):
        update = build_algorithm(name, settings, num_nodes=3).train(LocalTrainer(task), Sets({"model": start}), {})
        alone = train(training_task(learnable_images(32), training={**PLAIN, "local_epochs": 2}, proximal_mu=mu))
        assert digest_of(update.sets["model"]) == digest_of(alone.params)
        assert update.trained is not None
        assert (update.num_examples, update.trained.num_steps, update.trained.loss) == (32, 4, alone.loss)


def test_offset_is_added_to_the_clipped_gradient_of_one_step() -> None:
    task = task_of(16, max_grad_norm=0.1)
    start = TensorSet(task.global_params)
    plain, offset = (LocalTrainer(task).fit(start, gradient_offset=given) for given in (None, constant(start, 0.5)))
    assert plain.num_steps == 1
    for name in start:
        np.testing.assert_allclose(plain.model[name] - offset.model[name], task.learning_rate * 0.5, rtol=1e-3)


def test_offset_does_not_touch_statistics() -> None:
    images = learnable_images(16, image_shape=(3, 32, 32))
    task = training_task(images, model_name="resnet18", training={**PLAIN, "local_epochs": 1})
    start = TensorSet(task.global_params)
    plain, offset = (LocalTrainer(task).fit(start, gradient_offset=given) for given in (None, constant(start, 0.01)))
    statistics = [name for name in start if name.endswith(("running_mean", "running_var"))]
    assert statistics
    assert digest_of(plain.model.only(statistics)) == digest_of(offset.model.only(statistics))
    assert digest_of(plain.model) != digest_of(offset.model)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_total_step_is_how_far_a_constant_gradient_moves_a_weight(momentum: float) -> None:
    velocity, weight = 0.0, 0.0
    for _ in range(7):
        velocity = momentum * velocity + 1.0
        weight += 0.01 * velocity
    settings = TrainingSettings.model_validate({"momentum": momentum})
    assert total_step(settings, 0.01, 7) == pytest.approx(weight)


def test_scaffold_over_the_real_trainer_estimates_the_mean_gradient() -> None:
    """With plain SGD and no correction yet, the new control variate is the mean of the steps' gradients."""
    task = task_of()
    model = TensorSet(task.global_params)
    scaffold = build_algorithm("scaffold", {}, num_nodes=3)
    kept: dict[str, TensorSet] = {}
    update = scaffold.train(LocalTrainer(task), scaffold.start(model), kept)
    moved = train(task).params
    for name in model:
        np.testing.assert_allclose(kept["control"][name], (model[name] - moved[name]) / (2 * task.learning_rate), rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(update.sets["control"][name], kept["control"][name])


def test_initial_model_is_the_aggregators() -> None:
    task = training_task(learnable_images(8), model_seed=7)
    assert digest_of(LocalTrainer(task).initial) == digest_of(task.global_params)


def test_labels_are_counted_unless_the_site_keeps_that_to_itself() -> None:
    task = task_of()
    assert LocalTrainer(task).label_counts == [int((task.images.labels == label).sum()) for label in range(4)]
    assert LocalTrainer(task, shares_label_counts=False).label_counts is None


def test_only_some_weights_may_change_and_the_next_training_is_whole_again() -> None:
    task = task_of()
    start = TensorSet(task.global_params)
    module = models.build(task.model, task.images.image_shape, task.num_classes, seed=1)
    trainer = LocalTrainer(task, module=module)
    head = trainer.fit(start, only=["output.weight", "output.bias"], local_epochs=3)
    assert head.num_steps == 6
    changed = [name for name in start if (head.model[name] != start[name]).any()]
    assert changed == ["output.bias", "output.weight"]
    assert digest_of(trainer.fit(start).model) == digest_of(train(task).params)


def test_only_the_last_layers_step_is_that_of_its_own_gradient() -> None:
    """One step without clipping: what other layers do not do changes nothing for this one."""
    task = task_of(16, max_grad_norm=0.0)
    start = TensorSet(task.global_params)
    whole, part = LocalTrainer(task).fit(start), LocalTrainer(task).fit(start, only=["output.weight"])
    assert whole.num_steps == 1
    np.testing.assert_array_equal(part.model["output.weight"], whole.model["output.weight"])
    np.testing.assert_array_equal(part.model["output.bias"], start["output.bias"])
