"""Scores: numbers one can do by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from federation import models
from federation.errors import DataError
from federation.evaluation import evaluate, macro_auc, predict, score
from federation.images import ImageSet
from federation.settings import ModelSettings
from tests.learning.small_tasks import learnable_images


def test_scores_by_hand() -> None:
    """Labels 0 0 1 2, predictions 0 1 1 1, and class 3 that nothing has.

    F1: class 0 precision 1, recall 1/2: 2/3; class 1 precision 1/3, recall 1: 1/2; classes 2 and 3: 0.
    Each prediction has logit 1 against three of 0: loss ln(e + 3) - 1 where right, ln(e + 3) where wrong.
    """
    logits = np.eye(4, dtype=np.float32)[[0, 1, 1, 1]]
    result = score(logits, np.array([0, 0, 1, 2], np.int64), 4)
    assert result.num_examples == 4
    assert result.accuracy == 0.5
    assert result.f1_macro == pytest.approx((2 / 3 + 1 / 2) / 4)
    assert result.f1_weighted == pytest.approx((2 * 2 / 3 + 1 / 2 + 0) / 4)
    assert result.loss == pytest.approx(np.log(np.e + 3) - 0.5)
    assert result.class_accuracy == [0.5, 1.0, 0.0, 0.0]
    assert result.confusion_matrix == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_auc_by_hand() -> None:
    """Class 0's shares .9 .4 against .4 .2 .1: of six pairs four are in order, one ties: 5.5/6 with the tie as half."""
    shares = np.array([[0.9, 0.1], [0.4, 0.6], [0.4, 0.6], [0.2, 0.8], [0.1, 0.9]])
    assert macro_auc(shares, np.array([0, 0, 1, 1, 1])) == pytest.approx(5.5 / 6)


@pytest.mark.parametrize("decimals", [1, 6])
def test_auc_is_scikit_learns(decimals: int) -> None:
    """As MedMNIST's evaluator: the plain mean over classes of sklearn's area, each against the rest; with ties, too."""
    generator = np.random.default_rng(4)
    logits = generator.normal(size=(300, 5)).astype(np.float32)
    labels = generator.choice(5, 300, p=[0.5, 0.3, 0.1, 0.06, 0.04])
    logits[np.arange(300), labels] += 1
    shares = np.round(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), decimals).astype(np.float64)
    expected = np.mean([roc_auc_score(labels == label, shares[:, label]) for label in range(5)])
    assert macro_auc(shares, labels) == pytest.approx(expected, rel=1e-12)
    softmax = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True)
    whole = np.mean([roc_auc_score(labels == label, softmax[:, label]) for label in range(5)])
    assert score(logits, labels, 5).auc == pytest.approx(whole, rel=1e-12)


def test_auc_leaves_out_classes_without_examples() -> None:
    shares = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1]])
    assert macro_auc(shares, np.array([0, 0, 1])) == 1.0
    assert macro_auc(shares, np.array([1, 1, 1])) is None, "one class alone is told apart from nothing"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_spoilt_logits_are_scored(value: float) -> None:
    """A model that overflows is a bad model, not an exception: every figure stays finite."""
    logits = np.full((4, 3), value, np.float32)
    logits[0, 1] = 0.0
    result = score(logits, np.array([0, 1, 2, 2], np.int64), 3)
    assert np.isfinite([result.accuracy, result.f1_macro, result.f1_weighted, result.loss]).all()


def test_score_refuses_nothing_and_foreign_labels() -> None:
    with pytest.raises(DataError, match="no images to evaluate on"):
        score(np.empty((0, 2), np.float32), np.empty(0, np.int64), 2)
    with pytest.raises(DataError, match="labels run from 0 to 2, the model has classes 0 to 1"):
        score(np.zeros((2, 2), np.float32), np.array([0, 2], np.int64), 2)


@pytest.mark.parametrize("name", ["simple_cnn", "resnet18"])
def test_prediction_does_not_depend_on_batches_and_leaves_the_mode(name: str) -> None:
    """Evaluation mode: no dropout, running statistics; and the module trains on as before."""
    images = learnable_images(23)
    module = models.build(ModelSettings.model_validate({"name": name}), images.image_shape, 4, seed=1)
    module.train()
    before = models.parameters_of(module)
    whole = predict(module, images.images)
    assert module.training
    assert whole.shape == (23, 4)
    np.testing.assert_array_equal(whole, predict(module, images.images))
    np.testing.assert_allclose(whole, predict(module, images.images, batch_size=5), atol=1e-4)
    for tensor, array in before.items():
        np.testing.assert_array_equal(models.parameters_of(module)[tensor], array)


def test_pixels_are_scaled_as_the_thesis_says() -> None:
    """(x / 255 - 0.5) / 0.5, channel by channel: a 1x1 identity network shows what it is fed."""

    class Identity(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1) * self.scale

    pixels = np.array([0, 51, 255, 128, 64, 1], np.uint8).reshape(2, 3, 1, 1)
    expected = (pixels.reshape(2, 3).astype(np.float64) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(predict(Identity(), pixels), expected, atol=1e-6)


def test_evaluate_joins_prediction_and_scores() -> None:
    images = learnable_images(12)
    module = models.build(ModelSettings(), images.image_shape, 4, seed=1)
    assert evaluate(module, images, 4, device=torch.device("cpu")) == score(predict(module, images.images), images.labels, 4)


def test_no_images() -> None:
    empty = ImageSet(images=np.empty((0, 3, 28, 28), np.uint8), labels=np.empty(0, np.int64))
    with pytest.raises(DataError, match="no images to evaluate on"):
        evaluate(models.build(ModelSettings(), (3, 28, 28), 4, seed=0), empty, 4)
