"""Agreement with PyTorch on whole sets of real images."""

from __future__ import annotations

from pathlib import Path

import pytest

from federation import models
from federation.data import load_dataset
from federation.evaluation import predict
from federation.inference.conversion import Converter
from federation.inference.engine import OnnxEngine
from federation.inference.figures import compare
from federation.inference.graph import take_pixels
from federation.settings import DataSettings, ModelSettings
from tests.inference.networks import NOWHERE, settled_params, trained


@pytest.mark.parametrize(
    ("data", "name", "num_images", "num_taught"),
    [("bloodmnist_half", "simple_cnn", 1898, 2000), ("mnist", "mnist_cnn", 10_000, 5000)],
)
def test_every_test_image_is_predicted_as_pytorch_does(data: str, name: str, num_images: int, num_taught: int, data_dir: Path) -> None:
    """A trained model, exported and again with new weights in the first round's graph: not one prediction differs."""
    dataset = load_dataset(DataSettings(name=data), data_dir=data_dir, cache_dir=NOWHERE, download=False)
    model, converter = ModelSettings.model_validate({"name": name}), Converter()
    assert len(dataset.test) == num_images
    taught = trained(dataset, model, num_epochs=1, learning_rate=0.01, num_images=num_taught)
    for params in (settled_params(model, dataset.image_shape, dataset.num_classes, seed=0), taught):
        module = models.build(model, dataset.image_shape, dataset.num_classes, seed=0)
        models.load_parameters(module, params)
        graph = converter.convert(model, dataset.image_shape, dataset.num_classes, params).model
        engine = OnnxEngine(take_pixels(graph).SerializeToString(), num_threads=1)
        parity = compare(predict(module, dataset.test.images), engine.predict(dataset.test.images, batch_size=64))
        assert parity.num_different == 0, parity.describe()
        assert parity.holds, parity.describe()
