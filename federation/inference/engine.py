"""ONNX Runtime on the CPU, one model a session."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from federation.errors import DataError, ModelFileError

Logits: TypeAlias = NDArray[np.float32]

PROVIDERS = ["CPUExecutionProvider"]

FATAL_ONLY = 4
"""ONNX Runtime's own log level: what is wrong it also raises, and we say it in our words."""

BATCH_BYTES = 8 << 20
"""Most bytes of one batch as float32: 256 images at 28 x 28 x 3, 13 at 224, where activations fill a Pi's memory."""


class OnnxEngine:
    """Runs one model.

    Args:
        model: the serialised graph; one input, whose first axis is the batch, and one output.
        num_threads: intra-op threads.
        is_idle_mostly: let threads sleep between requests instead of spinning (for a model that waits for work).

    Raises:
        ModelFileError: ONNX Runtime can't load it.
    """

    def __init__(self, model: bytes, *, num_threads: int, is_idle_mostly: bool = False) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = FATAL_ONLY
        if is_idle_mostly:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=PROVIDERS)
        except Exception as error:  # noqa: BLE001 - its exceptions have no common parent of their own
            raise ModelFileError(f"ONNX Runtime can't load the model: {str(error)[:300]}") from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise ModelFileError(f"the model has {len(inputs)} inputs and {len(outputs)} outputs, expected one of each")
        self._input = inputs[0].name
        self._output = outputs[0].name
        self.input_type: str = inputs[0].type
        self.input_shape: tuple[Any, ...] = tuple(inputs[0].shape)
        self.num_outputs: Any = outputs[0].shape[-1] if outputs[0].shape else None

    @property
    def metadata(self) -> Mapping[str, str]:
        """The file's metadata, names and values."""
        found: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        return found

    def run(self, batch: NDArray[Any]) -> Logits:
        """Return the logits, float32 N x num_classes, of one batch in the model's own input type."""
        logits: Logits = self._session.run([self._output], {self._input: batch})[0]
        return logits

    def predict(self, images: NDArray[Any], *, batch_size: int) -> Logits:
        """Return the logits of all images, in their order.

        Raises:
            DataError: there are no images.
        """
        if len(images) == 0:
            raise DataError("no images to predict: pass at least one")
        return np.concatenate([self.run(images[start : start + batch_size]) for start in range(0, len(images), batch_size)])


def largest_batch(image_shape: tuple[int, int, int]) -> int:
    """Return how many images of a shape one batch may hold."""
    return max(1, BATCH_BYTES // (4 * int(np.prod(image_shape))))
