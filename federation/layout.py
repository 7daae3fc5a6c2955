"""Where tensors lie in their bytes: the safetensors format in one canonical form.

We write the format ourselves, so that a digest never depends on a library's version: one tensor set has
exactly one encoding, and its SHA-256 is what `sha256sum model.safetensors` prints. Canonical means: tensors
in name order without gaps, little-endian, no metadata, compact JSON header with the keys dtype, shape,
data_offsets, padded with spaces to a multiple of 8 bytes. Anything else is refused. Models are float32; the
types that a codec uses (F16, I8, U8) are taken only where the expected signature has them.

Source of the format: https://huggingface.co/docs/safetensors (8-byte little-endian header length, JSON, data).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from federation.errors import CodecError, LocalProtocolError, RejectReason
from federation.params import DTYPES, Array, Signature, TensorSpec

MAX_HEADER_BYTES = 1 << 20
"""Longest header read: about 10,000 tensors, fifty times ResNet18's."""

MAX_DIMENSIONS = 8
"""More than any layer has, and well under numpy's limit."""

LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where everything lies in the encoding of one signature."""

    signature: Signature
    header: bytes
    """Length prefix, JSON and padding: all bytes before the first tensor."""
    offsets: Mapping[str, int]
    """Byte offset of each tensor from the start of the encoding."""
    total_bytes: int


def layout_of(signature: Signature) -> Layout:
    """Return the canonical layout of a signature.

    Raises:
        LocalProtocolError: names are not in order or not unique, a dimension is 0, or the header is too long.
    """
    names = [spec.name for spec in signature]
    if names != sorted(set(names)):
        raise LocalProtocolError(f"a signature must name each tensor once, in order: {names[:20]}")
    entries: dict[str, dict[str, Any]] = {}
    begin = 0
    for spec in signature:
        if len(spec.shape) > MAX_DIMENSIONS or any(size < 1 for size in spec.shape):
            raise LocalProtocolError(f"tensor {spec.name!r} can't be encoded with shape {spec.shape}")
        end = begin + spec.num_bytes
        entries[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise LocalProtocolError(f"{len(signature)} tensors need a header of {len(text)} bytes, over {MAX_HEADER_BYTES}")
    header = len(text).to_bytes(LENGTH_BYTES, "little") + text
    offsets = {name: len(header) + int(entry["data_offsets"][0]) for name, entry in entries.items()}
    return Layout(signature=signature, header=header, offsets=offsets, total_bytes=len(header) + begin)


def tensor_bytes(spec: TensorSpec, array: Array) -> memoryview:
    """Return a tensor's bytes on the wire, without a copy where it lies in memory that way.

    Raises:
        LocalProtocolError: the array is not of the given type and shape.
    """
    dtype = DTYPES[spec.dtype]
    if array.dtype != dtype or tuple(array.shape) != spec.shape:
        raise LocalProtocolError(f"tensor {spec.name!r} must be {dtype} {spec.shape}, is {array.dtype} {tuple(array.shape)}")
    return np.ascontiguousarray(array, dtype).reshape(-1).data.cast("B")


def read_layout(head: bytes, total_bytes: int, expected: Signature | None) -> Layout:
    """Return the layout that an encoding's first bytes describe, after checking it against its size.

    Args:
        head: the first bytes: at least length prefix and header, or all there are.
        total_bytes: size of the whole encoding.
        expected: the names, shapes and types that must be there; None accepts any names and shapes, of float32.

    Raises:
        CodecError: as `decode`.
    """
    if len(head) < LENGTH_BYTES:
        _corrupt(f"{len(head)} bytes are too few for a tensor set")
    header_bytes = int.from_bytes(head[:LENGTH_BYTES], "little")
    if header_bytes > MAX_HEADER_BYTES:
        _corrupt(f"the tensor header claims {header_bytes} bytes, over {MAX_HEADER_BYTES}")
    header = head[: LENGTH_BYTES + header_bytes]
    if len(header) < LENGTH_BYTES + header_bytes:
        _corrupt(f"the tensor header ends early: {len(header) - LENGTH_BYTES} of {header_bytes} bytes")
    signature = _signature_in(header[LENGTH_BYTES:])
    _check_dtypes(signature, expected)
    if expected is not None and signature != expected:
        raise CodecError(_difference(signature, expected), reason=RejectReason.WRONG_SHAPE)
    try:
        layout = layout_of(signature)
    except LocalProtocolError as error:
        _corrupt(str(error)[:400])
    # Comparing with the one canonical header refuses gaps, overlaps, wrong order, metadata and odd spellings at once.
    if layout.header != header:
        _corrupt("the tensor header is not in canonical form (order, offsets, spacing or additional keys)")
    if layout.total_bytes != total_bytes:
        _corrupt(f"the tensor set holds {total_bytes} bytes, its header describes {layout.total_bytes}")
    return layout


def _signature_in(text: bytes) -> Signature:
    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CodecError(f"the tensor header is not JSON: {error}"[:200], reason=RejectReason.CORRUPT) from None
    if not isinstance(entries, dict):
        _corrupt("the tensor header is not a JSON object")
    specs = [_spec(name, entry) for name, entry in entries.items()]
    return tuple(sorted(specs, key=lambda spec: spec.name))


def _spec(name: str, entry: object) -> TensorSpec:
    if any("\ud800" <= character <= "\udfff" for character in name):
        _corrupt("a tensor name holds a lone surrogate")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _corrupt(f"header entry {name[:100]!r} must hold dtype, shape and data_offsets alone")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CodecError(f"tensor {name[:100]!r} has dtype {str(dtype)[:20]!r}, not F32", reason=RejectReason.WRONG_DTYPE)
    shape = entry["shape"]
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(type(size) is int and 0 < size < 2**63 for size in shape):
        raise CodecError(f"tensor {name[:100]!r} has an impossible shape {str(shape)[:100]}", reason=RejectReason.WRONG_SHAPE)
    return TensorSpec(name=name, shape=tuple(shape), dtype=dtype)


def _check_dtypes(signature: Signature, expected: Signature | None) -> None:
    wanted = {spec.name: spec.dtype for spec in expected or ()}
    for spec in signature:
        if spec.dtype != wanted.get(spec.name, "F32"):
            detail = f"tensor {spec.name[:100]!r} has dtype {spec.dtype}, not {wanted.get(spec.name, 'F32')}"
            raise CodecError(detail, reason=RejectReason.WRONG_DTYPE)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key occurs twice")
    return entries


def _difference(signature: Signature, expected: Signature) -> str:
    shapes, wanted = ({spec.name: spec.shape for spec in specs} for specs in (signature, expected))
    missing, surplus = sorted(wanted.keys() - shapes.keys()), sorted(shapes.keys() - wanted.keys())
    if missing or surplus:
        return f"tensors missing: {', '.join(missing)[:200] or 'none'}; not expected: {', '.join(surplus)[:200] or 'none'}"
    name = next(name for name in sorted(wanted) if shapes[name] != wanted[name])
    return f"tensor {name[:100]!r} has shape {shapes[name]}, expected {wanted[name]}"


def _corrupt(detail: str) -> NoReturn:
    raise CodecError(detail, reason=RejectReason.CORRUPT)
