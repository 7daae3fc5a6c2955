"""One tensor set as numbered chunks, and back: any order, duplicates, loss, hostile claims.

Each chunk names the transfer it belongs to, so it means something without its manifest. The manifest
(`messages.Transfer`) is the commit mark: with it, missing and corrupt chunks have numbers.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from federation.chunk_format import DEFAULT_CHUNK_BYTES, Chunk, chunk_bytes_for, count_chunks, pack_header, parse_chunk
from federation.errors import ChunkError, LocalProtocolError, RejectReason
from federation.messages import MAX_CHUNKS, MAX_PARAMS_BYTES, Transfer

__all__ = ["DEFAULT_CHUNK_BYTES", "Assembly", "Chunk", "ChunkedFile", "chunk_bytes_for", "count_chunks", "parse_chunk"]

FILE_MODE = 0o600
"""Model files are the site's own."""

READ_BYTES = 1 << 20
"""Bytes hashed at a time."""


class ChunkedFile:
    """A file described as a transfer; its chunks are read when they are asked for, from any thread.

    Args:
        path: the file; it must stay as it is while the transfer goes on.
        chunk_bytes: tensor bytes of each chunk but the last.

    Raises:
        LocalProtocolError: the file is empty, or too large for that chunk size.
        OSError: the file can't be read.
    """

    def __init__(self, path: Path, chunk_bytes: int = DEFAULT_CHUNK_BYTES) -> None:
        self.path = path
        self.chunk_bytes = chunk_bytes
        self.total_bytes = path.stat().st_size
        self.num_chunks = count_chunks(self.total_bytes, chunk_bytes)
        if not 0 < self.total_bytes <= MAX_PARAMS_BYTES or self.num_chunks > MAX_CHUNKS:
            raise LocalProtocolError(f"{path} of {self.total_bytes} bytes can't be sent in chunks of {chunk_bytes}")
        whole = hashlib.sha256()
        chunk_digests = []
        with path.open("rb") as file:
            buffer = memoryview(bytearray(min(chunk_bytes, self.total_bytes)))
            while num_read := file.readinto(buffer):
                whole.update(buffer[:num_read])
                chunk_digests.append(hashlib.sha256(buffer[:num_read]).hexdigest())
        if len(chunk_digests) != self.num_chunks:
            raise LocalProtocolError(f"{path} changed while it was read")
        self.sha256 = whole.hexdigest()
        """SHA-256 of the whole file."""
        self.chunk_sha256 = tuple(chunk_digests)

    def payload(self, index: int) -> bytes:
        """Return one chunk with its header, read from the file now.

        Raises:
            LocalProtocolError: there is no such chunk, or the file has shrunk.
            OSError: the file can't be read.
        """
        if not 0 <= index < self.num_chunks:
            raise LocalProtocolError(f"{self.path} has {self.num_chunks} chunks, there is no number {index}")
        header = pack_header(
            index, num_chunks=self.num_chunks, total_bytes=self.total_bytes, chunk_bytes=self.chunk_bytes, transfer_sha256=self.sha256
        )
        num_bytes = min(self.chunk_bytes, self.total_bytes - index * self.chunk_bytes)
        # Opened for each chunk: nothing to close, and no file position for threads to share.
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            data = os.pread(descriptor, num_bytes, index * self.chunk_bytes)
        finally:
            os.close(descriptor)
        if len(data) != num_bytes:
            raise LocalProtocolError(f"{self.path} has shrunk since it was described")
        return header + data


class Assembly:
    """Collects one transfer into a file: idempotent, in any order, bounded in memory and on disk.

    Data go straight to the file; in memory stay a digest per chunk. Until a manifest comes, the first
    chunk says which transfer is collected; a manifest overrules it, and then only its chunks count.
    Not thread-safe: one thread feeds it.

    Args:
        path: where the transfer is collected; an old file there is replaced.
        expected_bytes: the transfer's exact size where it is known beforehand.
        max_bytes: the largest transfer taken.
    """

    def __init__(self, path: Path, *, expected_bytes: int | None, max_bytes: int) -> None:
        self.path = path
        self.num_corrupt = 0
        """Chunks of this transfer refused because their digest contradicts the manifest."""
        self._expected_bytes = expected_bytes
        self._max_bytes = max_bytes
        self._identity: _Identity | None = None
        self._manifest: Transfer | None = None
        self._is_finished = False
        self._digests: dict[int, bytes] = {}
        self._start_hash()

    @property
    def received_bytes(self) -> int:
        """Tensor bytes held of the current transfer, each chunk counted once."""
        if self._identity is None:
            return 0
        last = count_chunks(self._identity.total_bytes, self._identity.chunk_bytes) - 1
        surplus = self._identity.chunk_bytes * (last + 1) - self._identity.total_bytes if last in self._digests else 0
        return len(self._digests) * self._identity.chunk_bytes - surplus

    @property
    def is_complete(self) -> bool:
        """True when a manifest is known and every chunk of it is held."""
        return self._manifest is not None and len(self._digests) == len(self._manifest.chunk_sha256)

    def add_chunk(self, chunk: Chunk) -> bool:
        """Store a chunk; True when it is new, False for a duplicate, a corrupt one or another transfer's.

        Raises:
            ChunkError: `oversized`: the transfer is larger than `max_bytes`; `wrong_shape`: not of `expected_bytes`.
            OSError: the disk is full or fails.
        """
        self._check_size(chunk.total_bytes)
        identity = _Identity.of(chunk)
        if self._is_finished or identity != (self._identity or identity) or chunk.index in self._digests:
            return False
        digest = hashlib.sha256(chunk.data).digest()
        if self._manifest is not None and digest.hex() != self._manifest.chunk_sha256[chunk.index]:
            self.num_corrupt += 1
            return False
        if self._identity is None:
            self._restart(identity)
        self._write(chunk)
        self._digests[chunk.index] = digest
        if chunk.index == self._num_hashed:
            self._hash.update(chunk.data)
            self._num_hashed += 1
        return True

    def set_manifest(self, transfer: Transfer) -> None:
        """Make a manifest's transfer the one collected; chunks held of another, or that contradict it, are forgotten.

        After `finish` a manifest changes nothing until `discard`.

        Raises:
            ChunkError: `invalid_manifest`, `oversized` or `wrong_shape`; nothing changes.
            OSError: the disk is full or fails.
        """
        self._check_size(transfer.total_bytes)
        num_chunks = count_chunks(transfer.total_bytes, transfer.chunk_bytes)
        if num_chunks != len(transfer.chunk_sha256) or num_chunks > MAX_CHUNKS:
            raise ChunkError(
                f"manifest of {transfer.total_bytes} bytes in chunks of {transfer.chunk_bytes} lists {len(transfer.chunk_sha256)} digests",
                reason=RejectReason.INVALID_MANIFEST,
            )
        if self._is_finished:
            return
        identity = _Identity.of(transfer)
        if identity != self._identity:
            self._restart(identity)
        self._manifest = transfer
        for index, digest in list(self._digests.items()):
            if digest.hex() != transfer.chunk_sha256[index]:
                self._forget(index)

    def missing(self) -> list[int]:
        """Return the indices not held, in order.

        Raises:
            LocalProtocolError: there is no manifest yet.
        """
        if self._manifest is None:
            raise LocalProtocolError("what is missing is known only with a manifest")
        return [index for index in range(len(self._manifest.chunk_sha256)) if index not in self._digests]

    def finish(self) -> Path:
        """Return the file, its SHA-256 checked against the manifest; it takes no more chunks.

        Raises:
            LocalProtocolError: the transfer is not complete.
            ChunkError: `corrupt`: the whole contradicts the manifest although its chunks do not; `discard` it.
        """
        if self._manifest is None or not self.is_complete:
            raise LocalProtocolError(f"the transfer of {self.path} is not complete")
        self._hash_rest(self._manifest)
        if self._hash.hexdigest() != self._manifest.sha256:
            detail = f"the {self._manifest.total_bytes} bytes hash to {self._hash.hexdigest()}, the manifest says {self._manifest.sha256}"
            raise ChunkError(detail, reason=RejectReason.CORRUPT)
        self._is_finished = True
        return self.path

    def discard(self) -> None:
        """Forget everything and delete the file."""
        self.path.unlink(missing_ok=True)
        self._identity = self._manifest = None
        self._is_finished = False
        self._digests.clear()
        self._start_hash()

    def _check_size(self, total_bytes: int) -> None:
        if total_bytes > self._max_bytes:
            raise ChunkError(f"transfer of {total_bytes} bytes, at most {self._max_bytes} are taken", reason=RejectReason.OVERSIZED)
        if self._expected_bytes is not None and total_bytes != self._expected_bytes:
            detail = f"transfer of {total_bytes} bytes, this model's tensors take {self._expected_bytes}"
            raise ChunkError(detail, reason=RejectReason.WRONG_SHAPE)

    def _restart(self, identity: _Identity) -> None:
        self.discard()
        self._identity = identity

    def _forget(self, index: int) -> None:
        del self._digests[index]
        self.num_corrupt += 1
        if index < self._num_hashed:
            self._start_hash()

    def _start_hash(self) -> None:
        """Begin the digest of the whole anew; it grows while chunks come in order, so that little is left for `finish`."""
        self._hash = hashlib.sha256()
        self._num_hashed = 0

    def _hash_rest(self, manifest: Transfer) -> None:
        with self.path.open("rb", buffering=0) as file:
            file.seek(min(self._num_hashed * manifest.chunk_bytes, manifest.total_bytes))
            while data := file.read(READ_BYTES):
                self._hash.update(data)
        self._num_hashed = len(manifest.chunk_sha256)

    def _write(self, chunk: Chunk) -> None:
        # Opened for each chunk: thousands of nodes may upload at once, and file descriptors are few.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, FILE_MODE)
        try:
            offset, data = chunk.index * chunk.chunk_bytes, chunk.data
            while data:
                num_written = os.pwrite(descriptor, data, offset)
                offset, data = offset + num_written, data[num_written:]
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Identity:
    """What makes two chunks parts of one transfer."""

    sha256: str
    total_bytes: int
    chunk_bytes: int

    @classmethod
    def of(cls, source: Chunk | Transfer) -> Self:
        sha256 = source.transfer_sha256 if isinstance(source, Chunk) else source.sha256
        return cls(sha256=sha256, total_bytes=source.total_bytes, chunk_bytes=source.chunk_bytes)
