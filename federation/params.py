"""Model parameters as both sides see them: named float32 arrays in name order, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from federation.errors import CodecError, RejectReason

Array: TypeAlias = NDArray[Any]
"""One tensor: float32, in sums float64; of the encoded tensors of a codec, any type of `DTYPES`."""

Params: TypeAlias = Mapping[str, Array]
"""Tensor name -> float32 array. May read its tensors from disk only when they are asked for."""


DTYPES: Mapping[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I8": np.dtype("<i1"),
    "U8": np.dtype("<u1"),
}
"""The types that tensors have on the wire, by safetensors' names. A model's are float32; codecs use the others."""

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Name, shape and type of one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "F32"
    """One of `DTYPES`."""

    @property
    def num_bytes(self) -> int:
        """Size of the tensor's data in bytes."""
        return DTYPES[self.dtype].itemsize * prod(self.shape)


Signature: TypeAlias = tuple[TensorSpec, ...]
"""The tensors of a set, sorted by name."""


def signature_of(params: Params) -> Signature:
    """Return names, shapes and types of `params`, sorted by name; a type that the wire has not counts as float32, and can't be encoded."""
    arrays = ((name, params[name]) for name in sorted(params))
    return tuple(TensorSpec(name=name, shape=tuple(array.shape), dtype=_DTYPE_NAMES.get(array.dtype, "F32")) for name, array in arrays)


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


class FiniteParams(Mapping[str, Array]):
    """Parameters that raise a `CodecError` when a tensor is asked for that holds NaN or infinity.

    Args:
        params: checked tensor by tensor, as each is asked for.
    """

    def __init__(self, params: Params) -> None:
        self._params = params

    def __getitem__(self, name: str) -> Array:
        array = self._params[name]
        check_finite({name: array})
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._params)

    def __len__(self) -> int:
        return len(self._params)
