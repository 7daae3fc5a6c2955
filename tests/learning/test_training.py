"""Local training: the naive loop's losses, and the same bits for the same task."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.naive_training import simple_cnn, train_naively
from federation import models
from federation.errors import DataError, SettingsError, TrainingCancelled, TrainingDivergedError
from federation.evaluation import evaluate
from federation.images import ImageSet
from federation.params import Params
from federation.training import TrainingTask, choose_device, derive_seed, train
from tests.learning.small_tasks import digest_of, learnable_images, training_task


def distance(first: Params, second: Params) -> float:
    return float(np.sqrt(sum(((first[name].astype(np.float64) - second[name]) ** 2).sum() for name in first)))


def naive_outcome(task: TrainingTask, num_epochs: int, **recipe: Any) -> tuple[list[float], list[np.ndarray[Any, Any]]]:
    """Return the naive loop's losses and weights, from the same start, order and dropout as the task's."""
    num_channels, side_pixels, _ = task.images.image_shape
    network = simple_cnn(num_channels, side_pixels, task.num_classes)
    start = models.build(task.model, task.images.image_shape, task.num_classes, seed=0)
    models.load_parameters(start, task.global_params)
    with torch.no_grad():
        for mine, theirs in zip(network.parameters(), start.parameters(), strict=True):
            mine.copy_(theirs)
    generator = np.random.default_rng(derive_seed(task, "shuffle"))
    orders = [generator.permutation(len(task.images)) for _ in range(num_epochs)]
    torch.manual_seed(derive_seed(task, "dropout") % 2**63)
    losses = train_naively(
        network,
        task.images.images,
        task.images.labels,
        num_classes=task.num_classes,
        orders=orders,
        batch_size=task.training.batch_size,
        learning_rate=task.learning_rate,
        proximal_mu=task.proximal_mu,
        **recipe,
    )
    return losses, [weight.detach().numpy() for weight in network.parameters()]


@pytest.mark.parametrize(
    ("proximal_mu", "recipe"),
    [
        (0.0, {}),
        (0.5, {}),
        (0.0, {"weight_decay": 0.05, "momentum": 0.5, "max_grad_norm": 0.1}),
    ],
)
def test_same_loss_curve_as_the_naive_loop(proximal_mu: float, recipe: dict[str, float]) -> None:
    """DataLoader, PIL, torch.optim.SGD and clip_grad_norm_ give the same losses, epoch by epoch, and the same weights."""
    images = learnable_images(150)
    losses = []
    for num_epochs in (1, 2, 3):
        task = training_task(images, training={"local_epochs": num_epochs, **recipe}, proximal_mu=proximal_mu)
        outcome = train(task)
        losses.append(outcome.loss)
    naive_losses, naive_weights = naive_outcome(task, 3, **recipe)
    np.testing.assert_allclose(losses, naive_losses, rtol=1e-4)
    assert losses[2] < losses[0]
    trained = models.build(task.model, images.image_shape, 4, seed=0)
    models.load_parameters(trained, outcome.params)
    for mine, naive in zip(trained.parameters(), naive_weights, strict=True):
        np.testing.assert_allclose(mine.detach().numpy(), naive, atol=2e-4)


def test_it_learns() -> None:
    images, unseen = learnable_images(320), learnable_images(80, seed=1)
    task = training_task(images, training={"local_epochs": 3})
    outcome = train(task)
    module = models.build(task.model, images.image_shape, 4, seed=0)
    models.load_parameters(module, outcome.params)
    assert evaluate(module, unseen, 4).accuracy > 0.95
    assert outcome.num_examples == 320
    assert outcome.samples_per_second == pytest.approx(960 / outcome.seconds)


def test_an_absent_class_is_no_obstacle() -> None:
    images = learnable_images(40, num_classes=4)
    task = training_task(images, num_classes=9)
    assert np.isfinite(train(task).loss)


@pytest.mark.parametrize("model_name", ["simple_cnn", "mnist_cnn", "resnet18"])
def test_same_task_same_bits(model_name: str) -> None:
    """Whatever ran before in this process, whatever torch's global generator holds, with a reused network or a new one."""
    task = training_task(learnable_images(33, image_shape=(1, 8, 8)), model_name=model_name, training={"local_epochs": 2})
    first = train(task)
    torch.manual_seed(99)
    reused = models.build(task.model, task.images.image_shape, 4, seed=5)
    train(training_task(learnable_images(20, image_shape=(1, 8, 8), seed=3), model_name=model_name, seed=8), module=reused)
    before = torch.get_rng_state()
    second = train(task, module=reused)
    assert torch.equal(before, torch.get_rng_state())
    assert digest_of(second.params) == digest_of(first.params)
    assert second.loss == first.loss
    assert digest_of(models.parameters_of(reused)) == digest_of(second.params)


def test_same_bits_from_threads_at_once() -> None:
    """Two nodes of one process train at once, as in a simulation, and neither draws from the other's seed."""
    tasks = [training_task(learnable_images(48), node=f"node-{index}") for index in range(2)]
    alone = [digest_of(train(task).params) for task in tasks]
    together: dict[int, bytes] = {}

    def run(index: int) -> None:
        together[index] = digest_of(train(tasks[index]).params)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[0], together[1]] == alone


@pytest.mark.parametrize("change", [{"seed": 8}, {"round_number": 4}, {"node": "node-1"}])
def test_seed_round_and_node_each_change_the_order(change: dict[str, Any]) -> None:
    images = learnable_images(64)
    assert digest_of(train(training_task(images)).params) != digest_of(train(training_task(images, **change)).params)


def test_nothing_given_is_changed() -> None:
    images = learnable_images(32)
    task = training_task(images)
    pixels, params = images.images.copy(), digest_of(task.global_params)
    train(task)
    np.testing.assert_array_equal(images.images, pixels)
    assert digest_of(task.global_params) == params


def test_clipping_bounds_the_step() -> None:
    """One batch, first step: the weights move by learning rate x max_grad_norm, the gradient being longer than that."""
    task = training_task(learnable_images(16), training={"max_grad_norm": 0.001})
    assert distance(train(task).params, task.global_params) == pytest.approx(0.01 * 0.001, rel=0.02)


def test_proximal_term_holds_the_weights_back() -> None:
    images = learnable_images(160)
    moved = []
    for mu in (0.0, 1.0, 10.0):
        task = training_task(images, training={"local_epochs": 2}, proximal_mu=mu)
        moved.append(distance(train(task).params, task.global_params))
    assert moved[0] > moved[1] > moved[2]


@pytest.mark.parametrize("num_examples", [1, 5])
def test_a_batch_of_one_passes_batch_normalisation(num_examples: int) -> None:
    """ResNet18 ends in 1x1 features on 8-pixel images: one example alone has no spread, and torch would refuse it."""
    images = learnable_images(num_examples, image_shape=(1, 8, 8))
    outcome = train(training_task(images, model_name="resnet18", training={"batch_size": 4}))
    assert np.isfinite(outcome.loss)
    assert outcome.num_examples == num_examples


def test_batch_normalisation_statistics_are_part_of_the_update() -> None:
    task = training_task(learnable_images(32, image_shape=(1, 8, 8)), model_name="resnet18")
    outcome = train(task)
    name = "stem_norm.running_var"
    assert not np.array_equal(outcome.params[name], task.global_params[name])


def test_it_stops_when_told() -> None:
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) == 3

    before = torch.get_rng_state()
    with pytest.raises(TrainingCancelled, match="round 3 was told to stop"):
        train(training_task(learnable_images(160)), should_stop=should_stop)
    assert len(asked) == 3
    assert torch.equal(before, torch.get_rng_state())


def test_divergence_says_what_to_lower() -> None:
    task = training_task(learnable_images(64), training={"max_grad_norm": 0.0}, learning_rate=1e30)
    with pytest.raises(TrainingDivergedError, match=r"lower training\.learning_rate \(1e\+30 now\)"):
        train(task)


def test_foreign_labels_and_no_images_are_refused() -> None:
    with pytest.raises(DataError, match="labels run from 0 to 3, the model has classes 0 to 2"):
        train(training_task(learnable_images(8), num_classes=3))
    empty = ImageSet(images=np.empty((0, 3, 28, 28), np.uint8), labels=np.empty(0, np.int64))
    with pytest.raises(DataError, match="no training images"):
        train(training_task(empty))


def test_choosing_a_device() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in {"cpu", "cuda", "mps"}
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match=r"training\.device is 'cuda'.*set it to 'auto' or 'cpu'"):
            choose_device("cuda")
