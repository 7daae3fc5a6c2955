"""float16: half precision, rounded to nearest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from federation.learning.codecs.codec import Codec, Parts, Shape
from federation.params import Array

MAX_VALUE = float(np.finfo(np.float16).max)
"""65,504: larger values are sent as that, rather than as infinity."""


class Float16(Codec):
    """2 bytes a value, 3 significant digits."""

    class Settings(Codec.Settings):
        """None of its own."""

        name: Literal["float16"] = "float16"

    def parts(self, shape: Shape) -> Parts:
        """Return one tensor of half precision."""
        return {"#float16": ("F16", shape)}

    def encode(self, values: Array, draw: np.random.Generator) -> Mapping[str, Array]:  # noqa: ARG002 - the seam's signature
        """Return the tensor in half precision."""
        return {"#float16": np.clip(values, -MAX_VALUE, MAX_VALUE).astype(np.float16)}

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Array:  # noqa: ARG002 - the seam's signature
        """Return the tensor in single precision."""
        return parts["#float16"].astype(np.float32)
