"""How good a model is on one set of labelled images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, f1_score
from torch import nn

from federation.errors import DataError
from federation.images import Images, ImageSet, Labels
from federation.messages import Evaluation
from federation.models.pixels import normalise

DEFAULT_BATCH_SIZE = 256

BATCH_BYTES = 8 << 20
"""Float images of one batch at most: 256 fit at 28 x 28 x 3, and 13 at 224, where activations, not weights, fill a Pi's memory."""


def evaluate(
    module: nn.Module, images: ImageSet, num_classes: int, batch_size: int = DEFAULT_BATCH_SIZE, device: torch.device | None = None
) -> Evaluation:
    """Return the model's accuracy, F1, AUC, loss, per-class accuracy and confusion matrix on `images`.

    Args:
        module: evaluated in evaluation mode; its mode is left as it was.
        images: what to score it on.
        num_classes: how many logits it gives.
        batch_size: most images at once.
        device: where to run (`training.choose_device`): the module is moved there; None: where it is.

    Raises:
        DataError: there are no images, or a label outside the classes.
    """
    if device is not None:
        module.to(device)
    return score(predict(module, images.images, batch_size=batch_size), images.labels, num_classes)


def predict(module: nn.Module, images: Images, *, batch_size: int = DEFAULT_BATCH_SIZE) -> NDArray[np.float32]:
    """Return the logits, float32 N x num_classes, of uint8 images N x C x H x W, in their order.

    Raises:
        DataError: there are no images.
    """
    if len(images) == 0:
        raise DataError("no images to evaluate on: the test or validation set is empty")
    device = next(module.parameters()).device
    step = max(1, min(batch_size, BATCH_BYTES // (4 * images[0].size)))
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode():
            logits = [module(_batch(images[start : start + step], device)).cpu() for start in range(0, len(images), step)]
    finally:
        module.train(was_training)
    return torch.cat(logits).numpy()


def score(logits: NDArray[np.float32], labels: Labels, num_classes: int) -> Evaluation:
    """Return the evaluation of logits, N x num_classes, whichever engine computed them.

    Logits that are not finite count as the largest float32 (NaN as 0): a spoilt model is a bad model, scored
    like any other, not the end of the process that looks at it.

    Raises:
        DataError: there are no labels, or a label outside the classes.
    """
    if len(labels) == 0:
        raise DataError("no images to evaluate on: the test or validation set is empty")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(f"labels run from {labels.min()} to {labels.max()}, the model has classes 0 to {num_classes - 1}")
    largest = float(np.finfo(np.float32).max)
    values = np.nan_to_num(logits, nan=0.0, posinf=largest, neginf=-largest).astype(np.float64)
    predicted = values.argmax(axis=1)
    shifted = values - values.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    losses = np.log(exponentials.sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    classes = list(range(num_classes))
    matrix = confusion_matrix(labels, predicted, labels=classes)
    hits, counts = matrix.diagonal(), matrix.sum(axis=1)
    return Evaluation(
        num_examples=len(labels),
        accuracy=float(hits.sum() / len(labels)),
        f1_macro=float(f1_score(labels, predicted, labels=classes, average="macro", zero_division=0)),
        f1_weighted=float(f1_score(labels, predicted, labels=classes, average="weighted", zero_division=0)),
        loss=float(losses.mean()),
        auc=macro_auc(exponentials / exponentials.sum(axis=1, keepdims=True), labels),
        class_accuracy=[float(hit / max(count, 1)) for hit, count in zip(hits, counts, strict=True)],
        confusion_matrix=[[int(count) for count in row] for row in matrix],
    )


def macro_auc(shares: NDArray[np.float64], labels: Labels) -> float | None:
    """Return the mean over classes of the area under the ROC curve of each class against the rest, as MedMNIST scores it.

    The area is the share of pairs, one example of the class and one of another, in which the class's own gets the larger
    share; ties count half (Hanley and McNeil 1982). Classes without examples, or without others beside them, have none and
    are left out; None where that leaves nothing.

    Args:
        shares: softmax of the logits, N x C.
        labels: N.
    """
    areas = []
    for label in range(shares.shape[1]):
        is_own = labels == label
        num_own = int(is_own.sum())
        num_others = len(labels) - num_own
        if num_own and num_others:
            _, places, counts = np.unique(shares[:, label], return_inverse=True, return_counts=True)
            ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
            areas.append((ranks[is_own].sum() - num_own * (num_own + 1) / 2) / (num_own * num_others))
    return float(np.mean(areas)) if areas else None


def _batch(images: Images, device: torch.device) -> torch.Tensor:
    # Through N x H x W x C, so that training and evaluation see the same memory format and the same rounding.
    return normalise(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 2, 3, 1))).to(device))
