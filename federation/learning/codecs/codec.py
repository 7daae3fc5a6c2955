"""What every codec is: one float32 tensor as a few encoded ones, whose names, shapes and types are known beforehand.

A tensor `w` is encoded as its parts: `w#int8` and `w#scale`, say. So the size of what a codec makes of a model follows
from the model's signature, and can be bounded before a byte is stored; and tensors are decoded one at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from federation.params import Array
from federation.setting_types import Settings as StrictSettings

Shape = tuple[int, ...]

Parts = Mapping[str, tuple[str, Shape]]
"""Part -> its type (`federation.params.DTYPES`) and shape. The part of the empty name is called as the tensor itself."""

CodecName = Annotated[str, Field(min_length=1, max_length=64)]


class Codec(ABC):
    """How float32 tensors travel.

    Args:
        settings: the codec's own.
    """

    class Settings(StrictSettings):
        """What a run file may say of the codec."""

        name: CodecName
        delta: bool = False
        """Send changes: an update's difference to the round's global model, which is smaller than the model and so loses less."""

    error_feedback: ClassVar[bool] = False
    """Whether what encoding lost is kept on the node and added to what the next update sends."""

    def __init__(self, settings: Codec.Settings) -> None:
        self.settings = settings

    @abstractmethod
    def parts(self, shape: Shape) -> Parts:
        """Return what a float32 tensor of this shape is encoded as."""

    @abstractmethod
    def encode(self, values: Array, draw: np.random.Generator) -> Mapping[str, Array]:
        """Return a tensor's parts.

        Args:
            values: finite float32.
            draw: for rounding by chance; of this tensor, round and node alone.
        """

    @abstractmethod
    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Array:
        """Return the float32 tensor of its parts: exact and repeatable.

        Args:
            parts: of the types and shapes of `parts`; what is in them is hostile.
            shape: the tensor's.

        Raises:
            CodecError: `corrupt`: the parts contradict themselves.
        """
