"""Static int8: weights and activations in 8 bits, ranges calibrated on a node's own training images."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from federation.errors import ExportError
from federation.images import Images, normalise

NUM_CALIBRATION_IMAGES = 128
"""Ranges settle within a hundred images; the time it takes grows with them."""

CALIBRATION_BATCH = 16


class _Images(CalibrationDataReader):  # type: ignore[misc] # onnxruntime ships no types
    """Feeds normalised batches to the calibrator."""

    def __init__(self, name: str, images: Images) -> None:
        self._name = name
        self._batches: Iterator[NDArray[np.float32]] = (
            normalise(images[start : start + CALIBRATION_BATCH]) for start in range(0, len(images), CALIBRATION_BATCH)
        )

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next batch by the graph's input name; None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def quantise(model: onnx.ModelProto, images: Images) -> onnx.ModelProto:
    """Return the graph in int8: QuantizeLinear/DequantizeLinear pairs, weights per channel.

    Args:
        model: float32 `images` in, BatchNorm folded.
        images: uint8 N x C x H x W to calibrate on; an even sample of them is used.

    Raises:
        ExportError: there are no images, or the quantiser refuses the graph.
    """
    if len(images) == 0:
        raise ExportError("int8 needs training images to calibrate on, and there are none", reason="no_calibration_images")
    # Spread over the set: a node's images may be sorted by class.
    picked = np.unique(np.linspace(0, len(images) - 1, min(NUM_CALIBRATION_IMAGES, len(images))).astype(np.int64))
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    # What its pre-processing would do, folding and shape inference, is done.
    add_pre_process_metadata(prepared)
    try:
        with tempfile.TemporaryDirectory(prefix="fedmq-int8-") as folder:
            path = Path(folder) / "int8.onnx"
            quantize_static(
                prepared,
                path,
                _Images(model.graph.input[0].name, images[picked]),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
            return onnx.load(path)
    except Exception as error:  # noqa: BLE001 - the quantiser raises whatever it stumbles over
        raise ExportError(f"the graph can't be quantised: {str(error)[:300]}", reason="quantisation_failed") from None
