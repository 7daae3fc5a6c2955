"""Tensor sets as bytes and files: canonical safetensors, read one tensor at a time, written whole or not at all.

The digest of a tensor set is the SHA-256 of its encoding: what `sha256sum model.safetensors` prints.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from federation.errors import CodecError, LocalProtocolError, RejectReason
from federation.layout import LENGTH_BYTES, MAX_HEADER_BYTES, Layout, layout_of, read_layout, tensor_bytes
from federation.params import DTYPES, Array, Params, Signature, TensorSpec, signature_of

__all__ = ["FileParams", "Layout", "ParamsWriter", "decode", "digest", "encode", "file_digest", "layout_of", "sync", "write_params"]


def encode(params: Params) -> bytes:
    """Return the canonical encoding of tensors.

    Raises:
        LocalProtocolError: a tensor's type or shape can't be encoded.
    """
    layout = layout_of(_signature(params))
    return b"".join([layout.header, *(tensor_bytes(spec, params[spec.name]) for spec in layout.signature)])


def digest(params: Params) -> str:
    """Return the SHA-256 of the canonical encoding, in hexadecimal, without building it whole."""
    layout = layout_of(_signature(params))
    sha256 = hashlib.sha256(layout.header)
    for spec in layout.signature:
        sha256.update(tensor_bytes(spec, params[spec.name]))
    return sha256.hexdigest()


def decode(payload: bytes | bytearray | memoryview, expected: Signature | None) -> dict[str, Array]:
    """Return the tensors of an encoding, as views of `payload` (read-only where that is).

    Args:
        payload: bytes from outside.
        expected: the names, shapes and types that must be there; None accepts any names and shapes, of float32.

    Raises:
        CodecError: `wrong_dtype`, `wrong_shape` (names, too), or `corrupt` for everything else.
    """
    view = memoryview(payload).cast("B")
    layout = read_layout(bytes(view[: LENGTH_BYTES + MAX_HEADER_BYTES]), len(view), expected)
    return {
        spec.name: np.frombuffer(view, DTYPES[spec.dtype], prod(spec.shape), layout.offsets[spec.name]).reshape(spec.shape)
        for spec in layout.signature
    }


class FileParams(Mapping[str, Array]):
    """The tensors of an encoded file, each read from disk when it is asked for; nothing is kept.

    Args:
        path: a file as `ParamsWriter` writes it; it must not change while this object is used.
        expected: the names, shapes and types that must be there; None accepts any names and shapes, of float32.

    Raises:
        CodecError: the file is not a canonical tensor set of that signature, or changed since it was opened.
        OSError: the file can't be read.
    """

    def __init__(self, path: Path, expected: Signature | None = None) -> None:
        self.path = path
        with path.open("rb") as file:
            self._identity = _identity(file)
            head = file.read(LENGTH_BYTES)
            header_bytes = min(int.from_bytes(head, "little"), MAX_HEADER_BYTES + 1)
            self.layout: Layout = read_layout(head + file.read(header_bytes), os.fstat(file.fileno()).st_size, expected)
        self._specs = {spec.name: spec for spec in self.layout.signature}

    @property
    def signature(self) -> Signature:
        """Names and shapes of the tensors, in name order."""
        return self.layout.signature

    def __getitem__(self, name: str) -> Array:
        spec = self._specs[name]
        num_values = prod(spec.shape)
        # Opened anew each time: thousands of updates may be held as FileParams, and file descriptors are few.
        with self.path.open("rb") as file:
            if _identity(file) != self._identity:
                raise CodecError(f"{self.path} changed while it was read", reason=RejectReason.CORRUPT)
            file.seek(self.layout.offsets[name])
            values = np.fromfile(file, DTYPES[spec.dtype], num_values)
        if values.size != num_values:
            raise CodecError(f"{self.path} ends inside tensor {name!r}", reason=RejectReason.CORRUPT)
        return values.reshape(spec.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)


class ParamsWriter:
    """Writes one tensor set to a file, tensor by tensor in name order.

    A context manager: on a clean exit the file appears at `path` at once (written beside it and renamed);
    after an exception, or when tensors are missing, `path` is as it was.

    Args:
        path: where the file will be.
        signature: names and shapes of the tensors to come.
        durable: also survive a power cut (fsync of file and folder).
    """

    def __init__(self, path: Path, signature: Signature, *, durable: bool = True) -> None:
        self.path = path
        self.sha256 = ""
        """Digest of the tensor set; empty until the clean exit."""
        self._layout = layout_of(signature)
        self._durable = durable
        self._num_written = 0
        self._hash = hashlib.sha256(self._layout.header)
        self._part = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        self._file = self._part.open("xb")
        self._file.write(self._layout.header)
        return self

    def write(self, name: str, array: Array) -> None:
        """Append the next tensor.

        Raises:
            LocalProtocolError: it is not the next one in name order, or not of its type and shape.
        """
        if self._file is None:
            raise LocalProtocolError("ParamsWriter.write outside of its with block")
        spec = self._next_spec()
        if spec is None or spec.name != name:
            raise LocalProtocolError(f"tensor {name!r} written, expected {spec.name if spec else 'no more'!r}")
        data = tensor_bytes(spec, array)
        self._hash.update(data)
        self._file.write(data)
        self._num_written += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        file, self._file = self._file, None
        if file is None:
            raise LocalProtocolError("ParamsWriter left without being entered")
        try:
            with file:
                if kind is not None:
                    return
                if (spec := self._next_spec()) is not None:
                    raise LocalProtocolError(f"tensor {spec.name!r} and what follows were not written to {self.path}")
                file.flush()
                if self._durable:
                    os.fsync(file.fileno())
            self._part.replace(self.path)
            if self._durable:
                sync(self.path.parent)
            self.sha256 = self._hash.hexdigest()
        finally:
            self._part.unlink(missing_ok=True)

    def _next_spec(self) -> TensorSpec | None:
        signature = self._layout.signature
        return signature[self._num_written] if self._num_written < len(signature) else None


def write_params(path: Path, params: Params, *, durable: bool = True, signature: Signature | None = None) -> str:
    """Write a tensor set to `path`, atomically, and return its digest.

    Args:
        path: replaced when it exists.
        params: tensors; each is asked for once, one at a time, and once more before where `signature` is not given.
        durable: also survive a power cut.
        signature: names and shapes of `params`, where the caller knows them: a mean is then computed once, not twice.
    """
    signature = signature or _signature(params)
    with ParamsWriter(path, signature, durable=durable) as writer:
        for spec in signature:
            writer.write(spec.name, params[spec.name])
    return writer.sha256


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _signature(params: Params) -> Signature:
    return params.signature if isinstance(params, FileParams) else signature_of(params)


def _identity(file: BinaryIO) -> tuple[int, int, int]:
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns
