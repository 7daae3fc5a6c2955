"""Tensors that the codecs' tests share."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from federation.layout import layout_of
from federation.learning.codecs import build_codec, wire_signature
from federation.params import Array, TensorSpec

SIMPLE_CNN = {"conv1": (16, 3, 3, 3), "conv2": (32, 16, 3, 3), "conv3": (64, 32, 3, 3), "hidden": (128, 576), "output": (8, 128)}
"""Weights of the thesis's network for bloodmnist."""

tensors = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=12),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)
"""Any small tensor of moderate numbers."""


def draw(seed: int = 0) -> np.random.Generator:
    """Return a generator."""
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0) -> Array:
    """Return normally distributed float32 values."""
    return draw(seed).normal(size=shape).astype(np.float32)


def num_bytes_of_simple_cnn(codec: str) -> int:
    """Return what an update of the thesis's network takes, header included."""
    specs = [
        spec
        for name, shape in SIMPLE_CNN.items()
        for spec in (TensorSpec(name=f"{name}.bias", shape=shape[:1]), TensorSpec(name=f"{name}.weight", shape=shape))
    ]
    return layout_of(wire_signature(build_codec(codec, {}), {"model": tuple(specs)})).total_bytes
