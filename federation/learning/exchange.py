"""What one round's nodes are sent and answer with: a method, a codec, and the tensors that follow from both.

sets of `down` -> one float32 file                         the round's global transfer
sets of `up`   -> protected, encoded -> one file            each node's update
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping
from typing import Any, Protocol

from federation.errors import SettingsError
from federation.learning.algorithms import ALGORITHMS, Algorithm, build_algorithm
from federation.learning.codecs import CODECS, Codec, build_codec, decode_sets, encode_sets, unflatten, wire_signature
from federation.learning.own_code import capability_of, is_own, load_own, source_digest
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

    @property
    def source_sha256(self) -> str | None:
        """Of the source of one's own; None of FedMQ's."""
        ...


def build_exchange(method: Chosen, codec: Chosen, *, num_nodes: int, down: Mapping[str, Signature]) -> Exchange:
    """Return the exchange of a round as its plan names it.

    Raises:
        SettingsError: this installation does not know the method or codec, or a setting of theirs, or has another source of them.
    """
    for chosen in (method, codec):
        if is_own(chosen.name) and source_digest(chosen.name) != chosen.source_sha256:
            raise SettingsError(f"{chosen.name} here is another source than the one the round was planned with")
    algorithm = build_algorithm(method.name, method.settings, num_nodes=num_nodes)
    return Exchange(algorithm, build_codec(codec.name, codec.settings), down)


def capabilities(own: Collection[str] = ()) -> list[str]:
    """Return by what a node says which methods and codecs it knows.

    Args:
        own: names `package.module:Name` that its owner has installed and named; each is imported.

    Raises:
        SettingsError: one of them can't be used.
    """
    for name in own:
        found = load_own(name, object)
        if not issubclass(found, (Algorithm, Codec)):
            raise SettingsError(f"{name} is neither a method nor a codec: let it derive from fedmq.extend.Algorithm or Codec")
    return sorted({*ALGORITHMS, *CODECS, *map(capability_of, own)})


def check_capability(method: Chosen, codec: Chosen, known: Collection[str]) -> None:
    """Raise unless a node has said that it knows what a plan names; nothing is imported before.

    Raises:
        SettingsError: it has not.
    """
    for chosen in (method, codec):
        if is_own(chosen.name) and capability_of(chosen.name, chosen.source_sha256 or "-") not in known:
            raise SettingsError(f"{chosen.name} of this source is not among FEDMQ_EXTENSIONS here: its owner has not installed it")


def sets_of(tensors: Params, signature: Signature) -> Sets:
    """Return the sets of a float32 transfer, read when they are asked for."""
    return unflatten(TensorSet(tensors, signature))
