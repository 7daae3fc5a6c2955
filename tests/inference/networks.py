"""Parameters and trained models that the ONNX tests share."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from federation import models
from federation.codec import digest
from federation.data import Dataset, load_dataset
from federation.inference.card import ModelCard
from federation.params import Params
from federation.settings import DataSettings, ModelSettings, TrainingSettings
from federation.training import TrainingTask, train

NOWHERE = Path("/nonexistent")
"""As cache folder: scikit-learn's digits and local files need none."""

MNIST_CNN = ModelSettings(name="mnist_cnn")


def settled_params(model: ModelSettings, image_shape: tuple[int, int, int], num_classes: int, seed: int) -> Params:
    """Return parameters as training leaves them: BatchNorm's tensors are neither zeros nor ones."""
    generator = np.random.default_rng(seed)
    initial = models.parameters_of(models.build(model, image_shape, num_classes, seed))
    settled = {}
    for name, array in initial.items():
        change = generator.uniform(0.1, 0.6, array.shape) if name.endswith("var") else generator.normal(0, 0.02, array.shape)
        settled[name] = (array + change).astype(np.float32)
    return settled


def noise(image_shape: tuple[int, int, int], num_images: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return uint8 images of random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (num_images, *image_shape), dtype=np.uint8)


@cache
def digits() -> Dataset:
    """Return scikit-learn's digits, 1 x 8 x 8."""
    return load_dataset(DataSettings(name="digits"), data_dir=None, cache_dir=NOWHERE, download=False)


@cache
def digits_params() -> Params:
    """Return an MNIST CNN trained on the digits for a few epochs: well above nine in ten right."""
    dataset = digits()
    return trained(dataset, MNIST_CNN, num_epochs=6, learning_rate=0.05)


def trained(dataset: Dataset, model: ModelSettings, *, num_epochs: int, learning_rate: float, num_images: int | None = None) -> Params:
    """Return a model trained on a data set, or its first images, in one place."""
    indices = np.arange(len(dataset.train))[:num_images]
    task = TrainingTask(
        global_params=models.parameters_of(models.build(model, dataset.image_shape, dataset.num_classes, seed=0)),
        images=dataset.train.take(indices),
        num_classes=dataset.num_classes,
        model=model,
        training=TrainingSettings(local_epochs=num_epochs, batch_size=32, device="cpu"),
        learning_rate=learning_rate,
        proximal_mu=0.0,
        seed=0,
        round_number=1,
        node="test",
    )
    return train(task).params


def card_of(dataset: Dataset, params: Params, round_number: int = 1) -> ModelCard:
    """Return the card of a model of a data set."""
    return ModelCard(
        run="test",
        round_number=round_number,
        class_names=dataset.class_names,
        image_shape=dataset.image_shape,
        weights_digest=digest(params),
    )
