"""float32: tensors as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from federation.learning.codecs.codec import Codec, Parts, Shape
from federation.params import Array


class Float32(Codec):
    """4 bytes a value, nothing lost."""

    class Settings(Codec.Settings):
        """None of its own."""

        name: Literal["float32"] = "float32"

    def parts(self, shape: Shape) -> Parts:
        """Return the tensor itself."""
        return {"": ("F32", shape)}

    def encode(self, values: Array, draw: np.random.Generator) -> Mapping[str, Array]:  # noqa: ARG002 - the seam's signature
        """Return the tensor itself."""
        return {"": values}

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Array:  # noqa: ARG002 - the seam's signature
        """Return the tensor itself."""
        return parts[""]
