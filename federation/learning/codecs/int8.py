"""int8: whole numbers from -127 to 127 times a scale, one scale for each output channel.

Values are rounded up or down by chance, so that each is right on average and errors of many nodes cancel out:
Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding", NeurIPS 2017, section 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from federation.learning.codecs.codec import Codec, Parts, Shape
from federation.params import Array

MAX_STEP = 127
"""Symmetric: -128 is not used, so that a value and its negative are rounded alike."""


class Int8(Codec):
    """1 byte a value. Values of an output channel (the first dimension of a weight) share a scale."""

    class Settings(Codec.Settings):
        """None of its own."""

        name: Literal["int8"] = "int8"
        delta: bool = True

    def parts(self, shape: Shape) -> Parts:
        """Return the whole numbers and their scales."""
        return {"#int8": ("I8", shape), "#scale": ("F32", scale_shape(shape))}

    def encode(self, values: Array, draw: np.random.Generator) -> Mapping[str, Array]:
        """Return whole numbers and scales."""
        steps, scale = quantise(values, draw)
        return {"#int8": steps, "#scale": scale}

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Array:
        """Return whole numbers times their scales."""
        return dequantise(parts["#int8"], parts["#scale"]).reshape(shape)


def scale_shape(shape: Shape) -> Shape:
    """Return one scale for each output channel of a weight, or one for all of a vector or number."""
    return (shape[0],) if len(shape) > 1 else ()


def quantise(values: Array, draw: np.random.Generator) -> tuple[Array, Array]:
    """Return int8 steps of the shape of `values`, and their float32 scales."""
    rows = values.reshape(values.shape[0] if values.ndim > 1 else 1, -1)
    scales = (np.abs(rows).max(axis=1) / np.float32(MAX_STEP)).astype(np.float32)
    # A channel of zeros, or of values so small that their scale would vanish, is sent as zeros.
    divisors = np.where(scales > 0, scales, np.float32(1))[:, None]
    steps = np.floor(rows / divisors + draw.random(rows.shape, dtype=np.float32))
    whole = np.clip(steps, -MAX_STEP, MAX_STEP).astype(np.int8)
    return whole.reshape(values.shape), scales.reshape(scale_shape(values.shape))


def dequantise(steps: Array, scales: Array) -> Array:
    """Return float32 values of the shape of `steps`."""
    wide = steps.astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        # A hostile scale gives infinities, which are refused where tensors are checked.
        return wide * scales.reshape((-1, *(1,) * (steps.ndim - 1))) if scales.ndim else wide * scales
