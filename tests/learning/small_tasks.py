"""Small images and training tasks that the learning tests share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from federation import models
from federation.images import ImageSet
from federation.settings import ModelSettings, TrainingSettings
from federation.training import TrainingTask


def learnable_images(
    num_examples: int, *, num_classes: int = 4, image_shape: tuple[int, int, int] = (3, 28, 28), seed: int = 0
) -> ImageSet:
    """Return noise with one bright horizontal band per class: a network learns it in an epoch or two."""
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 100, (num_examples, *image_shape), dtype=np.uint8)
    labels = np.arange(num_examples) % num_classes
    rows = image_shape[1] // num_classes
    for index, label in enumerate(labels):
        images[index, :, label * rows : (label + 1) * rows] += 120
    return ImageSet(images=images, labels=labels.astype(np.int64))


def training_task(
    images: ImageSet,
    *,
    num_classes: int = 4,
    model_name: str = "simple_cnn",
    training: Mapping[str, Any] | None = None,
    model_seed: int = 0,
    **changes: Any,
) -> TrainingTask:
    """Return a task of one epoch on one thread with the thesis's recipe; `training` and `changes` override it."""
    model = ModelSettings.model_validate({"name": model_name})
    values: dict[str, Any] = {
        "global_params": models.parameters_of(models.build(model, images.image_shape, num_classes, seed=model_seed)),
        "images": images,
        "num_classes": num_classes,
        "model": model,
        "training": TrainingSettings.model_validate({"local_epochs": 1, "device": "cpu", "num_threads": 1, **(training or {})}),
        "learning_rate": 0.01,
        "proximal_mu": 0.0,
        "seed": 7,
        "round_number": 3,
        "node": "node-0",
    }
    return TrainingTask(**{**values, **changes})


def digest_of(params: Mapping[str, Any]) -> bytes:
    """Return the bytes of all tensors in name order: equal if and only if the parameters are, bit for bit."""
    return b"".join(name.encode() + params[name].tobytes() for name in sorted(params))
