"""Tensor sets as the tensors of one file: what a transfer holds.

A tensor `t` of set `s` is called `s:t`, and its parts `s:t#int8` and so on; the set `model` keeps its bare names. So a
float32 model on the wire is the very file that people use, and its digest the one `sha256sum` prints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, MutableMapping
from dataclasses import replace

import numpy as np

from federation.errors import LocalProtocolError
from federation.learning.codecs.codec import Codec
from federation.learning.sets import MODEL, Sets, TensorSet
from federation.params import Array, Params, Signature, TensorSpec


def wire_signature(codec: Codec, signatures: Mapping[str, Signature]) -> Signature:
    """Return names, shapes and types of what these sets are encoded as, by which a receiver bounds and checks them.

    Raises:
        LocalProtocolError: a name holds a character that separates the parts of names.
    """
    specs = [
        TensorSpec(name=wire_name(name, spec.name) + part, shape=shape, dtype=dtype)
        for name, signature in signatures.items()
        for spec in signature
        for part, (dtype, shape) in codec.parts(spec.shape).items()
    ]
    return tuple(sorted(specs, key=lambda spec: spec.name))


def encode_sets(
    codec: Codec, sets: Sets, *, bases: Mapping[str, TensorSet], kept: MutableMapping[str, TensorSet], purpose: str
) -> dict[str, Array]:
    """Return what a transfer of these sets holds; each tensor is read once.

    Args:
        codec: how.
        sets: what; finite.
        bases: of each set that changes are sent of, what they are changes to.
        kept: what the codec keeps on this node, by set: what was lost so far, which is sent with this, and replaced by what is lost now.
        purpose: names run, round and node; it seeds the rounding by chance.
    """
    encoded: dict[str, Array] = {}
    for name, tensors in sets.items():
        lost: dict[str, Array] = {}
        base = bases.get(name) if codec.settings.delta else None
        wanted = tensors if base is None else tensors - base
        if codec.error_feedback and name in kept:
            wanted = wanted + kept[name]
        for tensor in wanted:
            wire = wire_name(name, tensor)
            values = wanted[tensor]
            parts = codec.encode(values, _generator(purpose, wire))
            encoded.update({wire + part: array for part, array in parts.items()})
            if codec.error_feedback:
                lost[tensor] = values - codec.decode(parts, values.shape)
        if codec.error_feedback:
            kept[name] = TensorSet(lost, tensors.signature)
    return encoded


def decode_sets(codec: Codec, encoded: Params, signatures: Mapping[str, Signature], *, bases: Mapping[str, TensorSet]) -> Sets:
    """Return the sets of a transfer; each tensor is read and decoded when it is asked for.

    Args:
        codec: how they were encoded.
        encoded: tensors of `wire_signature`.
        signatures: of the sets.
        bases: as they were encoded with.

    Raises:
        CodecError: on access, where a tensor's parts contradict themselves.
    """
    return Sets({name: _decoded(codec, encoded, name, signature, bases.get(name)) for name, signature in signatures.items()})


def flatten(sets: Sets) -> TensorSet:
    """Return all tensors of the sets under their names in a transfer, as float32, read when they are asked for."""
    places = {wire_name(name, tensor): (name, tensor) for name, tensors in sets.items() for tensor in tensors}
    specs = {wire_name(name, spec.name): replace(spec, name=wire_name(name, spec.name)) for name in sets for spec in sets[name].signature}
    signature = tuple(specs[name] for name in sorted(specs))

    def compute(wire: str) -> Array:
        name, tensor = places[wire]
        return sets[name][tensor]

    return TensorSet.computed(signature, compute)


def unflatten(tensors: TensorSet) -> Sets:
    """Return the sets that float32 tensors of a transfer are of, by their names; read when they are asked for."""
    signatures: dict[str, list[TensorSpec]] = {}
    for spec in tensors.signature:
        name, colon, tensor = spec.name.partition(":")
        set_name, tensor = (name, tensor) if colon else (MODEL, spec.name)
        signatures.setdefault(set_name, []).append(replace(spec, name=tensor))

    def part(set_name: str, signature: Signature) -> TensorSet:
        return TensorSet.computed(signature, lambda tensor: tensors[wire_name(set_name, tensor)])

    return Sets({name: part(name, tuple(specs)) for name, specs in signatures.items()})


def wire_name(set_name: str, tensor: str) -> str:
    """Return what a tensor of a set is called in a transfer.

    Raises:
        LocalProtocolError: a name holds a character that separates the parts of names.
    """
    if any(mark in name for mark in ":#" for name in (set_name, tensor)):
        raise LocalProtocolError(f"names of sets and tensors hold no ':' or '#': {set_name!r}, {tensor!r}")
    return tensor if set_name == MODEL else f"{set_name}:{tensor}"


def _decoded(codec: Codec, encoded: Params, name: str, signature: Signature, base: TensorSet | None) -> TensorSet:
    shapes = {spec.name: spec.shape for spec in signature}

    def compute(tensor: str) -> Array:
        shape, wire = shapes[tensor], wire_name(name, tensor)
        return codec.decode({part: encoded[wire + part] for part in codec.parts(shape)}, shape)

    decoded = TensorSet.computed(signature, compute)
    return decoded if base is None or not codec.settings.delta else base + decoded


def _generator(purpose: str, wire: str) -> np.random.Generator:
    seed = hashlib.sha256(f"fedmq/{purpose}/codec/{wire}".encode()).digest()
    return np.random.default_rng(int.from_bytes(seed, "big"))
