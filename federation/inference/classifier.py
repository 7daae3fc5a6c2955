"""A model file in use: pixels in, class names and probabilities out, without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from federation.errors import ModelFileError
from federation.images import Images
from federation.inference.card import INPUT_NAME, ModelCard, read_card
from federation.inference.engine import OnnxEngine, largest_batch
from federation.inference.model_file import read_model

MAX_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One class and how probable the model holds it."""

    class_index: int
    class_name: str
    probability: float


class Classifier:
    """Classifies pixels with one model.

    Args:
        model: a file written by a node or by `fedmq export`.
        num_threads: the engine's.

    Raises:
        ModelFileError: ONNX Runtime can't load it, it is not one of ours, or its card does not fit its graph.
    """

    def __init__(self, model: bytes, *, num_threads: int) -> None:
        self._engine = OnnxEngine(model, num_threads=num_threads, is_idle_mostly=True)
        self.card: ModelCard = read_card(self._engine.metadata)
        shape, classes = self._engine.input_shape[1:], self._engine.num_outputs
        if self._engine.input_type != "tensor(uint8)" or tuple(shape) != self.card.image_shape:
            raise ModelFileError(
                f"the graph takes {self._engine.input_type} {shape} as {INPUT_NAME}, its card says {self.card.image_shape}"
            )
        if classes != len(self.card.class_names):
            raise ModelFileError(f"the graph has {classes} outputs, its card {len(self.card.class_names)} class names")

    def classify(self, images: Images, *, top: int) -> list[tuple[Prediction, ...]]:
        """Return the most probable classes of each image, best first.

        Args:
            images: uint8 N x C x H x W of the card's shape.
            top: how many classes; fewer when the model has fewer.

        Raises:
            DataError: there are no images.
        """
        batch_size = min(MAX_BATCH, largest_batch(self.card.image_shape))
        logits = self._engine.predict(images, batch_size=batch_size).astype(np.float64)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = powers / powers.sum(axis=1, keepdims=True)
        # Stable, so that equal classes keep label order, as argmax would.
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        return [
            tuple(
                Prediction(class_index=int(index), class_name=self.card.class_names[index], probability=float(row[index]))
                for index in indices
            )
            for row, indices in zip(probabilities, order, strict=True)
        ]


def load_classifier(path: Path, *, num_threads: int) -> Classifier:
    """Return the classifier of a model file.

    Raises:
        ModelFileError: it can't be read or used; the text names the file.
    """
    model = read_model(path)
    try:
        return Classifier(model, num_threads=num_threads)
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from None
