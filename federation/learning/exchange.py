"""What one round's nodes are sent and answer with: a method, a codec, and the tensors that follow from both.

sets of `down` -> one float32 file                         the round's global transfer
sets of `up`   -> protected, encoded -> one file            each node's update
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, Protocol

from federation.learning.algorithms import ALGORITHMS, Algorithm, build_algorithm
from federation.learning.codecs import CODECS, Codec, build_codec, decode_sets, encode_sets, unflatten, wire_signature
from federation.learning.sets import Sets, TensorSet
from federation.params import Array, Params, Signature


class Exchange:
    """The tensors that cross the broker in a round. Pure.

    Args:
        algorithm: the method.
        codec: of the updates; what nodes are sent is float32.
        down: signatures of the sets that nodes are sent.
    """

    def __init__(self, algorithm: Algorithm, codec: Codec, down: Mapping[str, Signature]) -> None:
        self.algorithm = algorithm
        self.codec = codec
        self._up = {name: down[upload.like] for name, upload in algorithm.up.items()}
        self.update_signature = wire_signature(codec, self._up)
        """Names, shapes and types of an update's tensors."""

    def encode(self, sets: Sets, down: Sets, *, kept: MutableMapping[str, TensorSet], purpose: str) -> dict[str, Array]:
        """Return an update's tensors.

        Args:
            sets: those of `up`.
            down: those of `down`, from which the update was trained.
            kept: what the codec keeps on this node; changed.
            purpose: names run, round and node, for rounding by chance.
        """
        return encode_sets(self.codec, sets, bases=self._bases(down), kept=kept, purpose=purpose)

    def decode(self, tensors: Params, down: Sets | None) -> Sets:
        """Return the sets of an update, read and decoded when they are asked for.

        Args:
            tensors: of `update_signature`.
            down: those of `down`, from which the update was trained; None leaves changes as changes, which tells finite ones apart.

        Raises:
            CodecError: on access, where a tensor's parts contradict themselves.
        """
        return decode_sets(self.codec, tensors, self._up, bases=self._bases(down) if down is not None else {})

    def _bases(self, down: Sets) -> dict[str, TensorSet]:
        return {name: down[upload.like] for name, upload in self.algorithm.up.items() if not upload.is_difference}


class Chosen(Protocol):
    """A method or codec by name, with its settings."""

    @property
    def name(self) -> str:
        """A key of its table."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Its own settings."""
        ...


def build_exchange(method: Chosen, codec: Chosen, *, num_nodes: int, down: Mapping[str, Signature]) -> Exchange:
    """Return the exchange of a round as its plan names it.

    Raises:
        SettingsError: this installation does not know the method or codec, or a setting of theirs.
    """
    algorithm = build_algorithm(method.name, method.settings, num_nodes=num_nodes)
    return Exchange(algorithm, build_codec(codec.name, codec.settings), down)


def capabilities() -> list[str]:
    """Return the names of the methods and codecs that this installation knows."""
    return sorted({*ALGORITHMS, *CODECS})


def sets_of(tensors: Params, signature: Signature) -> Sets:
    """Return the sets of a float32 transfer, read when they are asked for."""
    return unflatten(TensorSet(tensors, signature))
