"""topk: the largest values alone; what is left out is sent later.

The node keeps what it did not send and adds it to its next update (error feedback), without which leaving out the
smaller values of every update would never send them: Stich et al., "Sparsified SGD with Memory", NeurIPS 2018, algorithm 1.

Where a value belongs is told by its distance to the one before, in one byte. Where that would be more than 256 places,
a value between is sent, too, in place of one of the smallest chosen: so the size never depends on the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, prod
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from federation.errors import CodecError, RejectReason
from federation.learning.codecs.codec import Codec, Parts, Shape
from federation.learning.codecs.int8 import dequantise, quantise
from federation.params import Array

REACH = 256
"""Places that one byte steps over, at most: 1 to 256."""

Positions = NDArray[np.int64]


class TopK(Codec):
    """2 bytes a value sent (5 in float32), of a share of each tensor's values."""

    class Settings(Codec.Settings):
        """How much is sent, and how."""

        name: Literal["topk"] = "topk"
        delta: bool = True
        share: Annotated[float, Field(ge=0.004, le=1)] = 0.05
        """Of each tensor's values, rounded up; at least 1 in 256."""
        values: Literal["int8", "float32"] = "int8"
        """How the values that are sent travel."""

    settings: Settings
    error_feedback: ClassVar = True

    def parts(self, shape: Shape) -> Parts:
        """Return distances and values."""
        num_sent = self._num_sent(shape)
        gaps: Parts = {"#gaps": ("U8", (num_sent,))}
        if self.settings.values == "float32":
            return {**gaps, "#values": ("F32", (num_sent,))}
        return {**gaps, "#int8": ("I8", (num_sent,)), "#scale": ("F32", ())}

    def encode(self, values: Array, draw: np.random.Generator) -> Mapping[str, Array]:
        """Return the largest values and where they are."""
        flat = values.reshape(-1)
        positions = choose_positions(np.abs(flat), self._num_sent(values.shape))
        gaps = (np.diff(positions, prepend=-1) - 1).astype(np.uint8)
        chosen = flat[positions]
        if self.settings.values == "float32":
            return {"#gaps": gaps, "#values": chosen}
        steps, scale = quantise(chosen, draw)
        return {"#gaps": gaps, "#int8": steps, "#scale": scale}

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Array:
        """Return the values at their places, zeros elsewhere."""
        positions = np.cumsum(parts["#gaps"].astype(np.int64) + 1) - 1
        if positions[-1] >= prod(shape):
            raise CodecError(f"a value at place {positions[-1]} of {prod(shape)}", reason=RejectReason.CORRUPT)
        values = np.zeros(prod(shape), np.float32)
        values[positions] = parts["#values"] if self.settings.values == "float32" else dequantise(parts["#int8"], parts["#scale"])
        return values.reshape(shape)

    def _num_sent(self, shape: Shape) -> int:
        num_values = prod(shape)
        return max(ceil(self.settings.share * num_values), ceil(num_values / REACH))


def choose_positions(magnitudes: Array, num_chosen: int) -> Positions:
    """Return `num_chosen` places in order, no two more than 256 apart: those of the largest values, and what lies between.

    Args:
        magnitudes: one-dimensional.
        num_chosen: at least 1 in 256, rounded up.
    """
    largest_first: Positions = np.argsort(-magnitudes, kind="stable")
    num_largest = num_chosen
    while (excess := num_largest + len(_between(largest_first[:num_largest])) - num_chosen) > 0:
        num_largest -= excess
    chosen = np.zeros(len(magnitudes), dtype=bool)
    largest = largest_first[: max(num_largest, 0)]
    chosen[largest] = True
    chosen[_between(largest)] = True
    while (num_more := num_chosen - int(chosen.sum())) > 0:
        # The largest within reach of the last one: they need nothing between.
        last = int(np.flatnonzero(chosen)[-1]) if chosen.any() else -1
        within_reach = largest_first[(largest_first <= last + REACH) & ~chosen[largest_first]]
        chosen[within_reach[:num_more]] = True
    return np.flatnonzero(chosen)


def _between(places: Positions) -> Positions:
    """Return the places that must be sent, too, so that no step is longer than one byte tells."""
    ordered = np.sort(places)
    starts = np.concatenate(([-1], ordered[:-1])).astype(np.int64) if len(ordered) else ordered
    counts = (ordered - starts - 1) // REACH
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    between: Positions = np.repeat(starts, counts) + REACH * (offsets + 1)
    return between
