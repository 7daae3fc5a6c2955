"""Model parameters as both sides see them: named float32 arrays in name order, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from federation.errors import CodecError, RejectReason

Array: TypeAlias = NDArray[Any]
"""One tensor; on the wire always float32, in sums float64."""

Params: TypeAlias = Mapping[str, Array]
"""Tensor name -> float32 array. May read its tensors from disk only when they are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name and shape of one float32 tensor."""

    name: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size of the tensor's data in bytes."""
        return 4 * prod(self.shape)


Signature: TypeAlias = tuple[TensorSpec, ...]
"""The tensors of a model, sorted by name."""


def signature_of(params: Params) -> Signature:
    """Return the names and shapes of `params`, sorted by name."""
    return tuple(TensorSpec(name=name, shape=tuple(params[name].shape)) for name in sorted(params))


def num_parameters(signature: Signature) -> int:
    """Return how many scalars a model of this signature has."""
    return sum(prod(spec.shape) for spec in signature)


def check_finite(params: Params) -> None:
    """Raise unless every value is finite.

    Raises:
        CodecError: a tensor holds NaN or infinity; the text names it.
    """
    for name in sorted(params):
        if not np.isfinite(params[name]).all():
            raise CodecError(f"tensor {name!r} holds NaN or infinity", reason=RejectReason.NON_FINITE)
