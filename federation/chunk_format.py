"""The bytes of one chunk, and how large it may be.

offset  bytes  chunk header, big-endian
     0      4  b"FMQC"
     4      1  version, 1
     5      3  zero
     8      4  index, from 0
    12      4  num_chunks
    16      8  total_bytes: tensor bytes of the whole transfer
    24      4  chunk_bytes: tensor bytes of every chunk but the last
    28      4  zero
    32     32  SHA-256 of the whole transfer
    64      -  tensor bytes of this chunk
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from federation.errors import ChunkError, RejectReason, TransportError
from federation.messages import MAX_CHUNKS, MAX_PARAMS_BYTES
from federation.topics import MAX_TOPIC_CHARACTERS

DEFAULT_CHUNK_BYTES = 256 * 1024
"""Tensor bytes of a chunk: large enough that a chunk's cost is its bytes, small enough to re-send over a bad link."""

SMALL_CHUNK_BYTES = 64 * 1024
SMALL_TRANSFER_BYTES = 8 << 20
"""Transfers up to this size go in small chunks: what a cut link sends again is half a chunk. A 640 KB model at 256 kbit/s, cut
every 20 s, sent 45 % of its bytes twice in chunks of 256 KiB and 7 % in chunks of 64 KiB. Larger models pay for more chunks in
time: a ResNet18 round took 1.8 s in small ones, 1.2 s in large ones."""

MIN_CHUNK_BYTES = 1024
MAX_CHUNK_BYTES = 64 << 20

MAGIC = b"FMQC"
VERSION = 1
HEADER = struct.Struct(">4sB3sIIQI4s32s")
_ZERO_3, _ZERO_4 = bytes(3), bytes(4)

PACKET_OVERHEAD_BYTES = 5 + 2 + MAX_TOPIC_CHARACTERS + 2 + 16 + HEADER.size
"""Bytes of a PUBLISH besides the tensor bytes: fixed header, topic, packet identifier, properties, chunk header."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One part of a transfer, consistent with itself."""

    index: int
    num_chunks: int
    total_bytes: int
    chunk_bytes: int
    transfer_sha256: str
    data: memoryview


def parse_chunk(payload: bytes | bytearray | memoryview, index: int | None = None) -> Chunk:
    """Return the chunk of a payload; its data are a view of it, not a copy.

    Args:
        payload: the chunk's bytes.
        index: which chunk its topic says it is. What came under another's topic is no chunk: the broker would hold it there for
            whoever reads the round later. None where there is no topic.

    Raises:
        ChunkError: `corrupt` (no chunk, it contradicts itself or its topic), `unsupported_version`, or `oversized`.
    """
    view = memoryview(payload).cast("B")
    if len(view) < HEADER.size:
        raise ChunkError(f"{len(view)} bytes are too few for a chunk", reason=RejectReason.CORRUPT)
    magic, version, zero_3, number, num_chunks, total_bytes, chunk_bytes, zero_4, sha256 = HEADER.unpack_from(view)
    if magic != MAGIC:
        raise ChunkError("the payload does not begin like a chunk", reason=RejectReason.CORRUPT)
    if version != VERSION:
        raise ChunkError(f"chunk of version {version}, this is version {VERSION}", reason=RejectReason.UNSUPPORTED_VERSION)
    if zero_3 != _ZERO_3 or zero_4 != _ZERO_4:
        raise ChunkError("reserved bytes of the chunk header are not zero", reason=RejectReason.CORRUPT)
    if total_bytes > MAX_PARAMS_BYTES or num_chunks > MAX_CHUNKS or chunk_bytes > MAX_CHUNK_BYTES:
        detail = f"chunk of a transfer of {total_bytes} bytes in {num_chunks} chunks of {chunk_bytes} bytes"
        raise ChunkError(detail, reason=RejectReason.OVERSIZED)
    if chunk_bytes < MIN_CHUNK_BYTES or num_chunks != count_chunks(total_bytes, chunk_bytes) or number >= num_chunks:
        detail = f"chunk {number} of {num_chunks} contradicts {total_bytes} bytes in chunks of {chunk_bytes}"
        raise ChunkError(detail, reason=RejectReason.CORRUPT)
    if index is not None and number != index:
        raise ChunkError(f"chunk {number} came under the topic of chunk {index}", reason=RejectReason.CORRUPT)
    data = view[HEADER.size :]
    expected_bytes = min(chunk_bytes, total_bytes - number * chunk_bytes)
    if len(data) != expected_bytes:
        raise ChunkError(f"chunk {number} holds {len(data)} bytes, its header says {expected_bytes}", reason=RejectReason.CORRUPT)
    return Chunk(
        index=number, num_chunks=num_chunks, total_bytes=total_bytes, chunk_bytes=chunk_bytes, transfer_sha256=sha256.hex(), data=data
    )


def pack_header(index: int, *, num_chunks: int, total_bytes: int, chunk_bytes: int, transfer_sha256: str) -> bytes:
    """Return the header that goes before a chunk's tensor bytes."""
    return HEADER.pack(MAGIC, VERSION, _ZERO_3, index, num_chunks, total_bytes, chunk_bytes, _ZERO_4, bytes.fromhex(transfer_sha256))


def count_chunks(total_bytes: int, chunk_bytes: int) -> int:
    """Return how many chunks of `chunk_bytes` hold `total_bytes`."""
    return -(-total_bytes // chunk_bytes)


def preferred_chunk_bytes(total_bytes: int) -> int:
    """Return the chunk size for a transfer of `total_bytes` where the broker allows it."""
    return SMALL_CHUNK_BYTES if total_bytes <= SMALL_TRANSFER_BYTES else DEFAULT_CHUNK_BYTES


def chunk_bytes_for(max_packet_bytes: int | None, default: int = DEFAULT_CHUNK_BYTES) -> int:
    """Return the chunk size to send through a broker.

    Args:
        max_packet_bytes: the broker's Maximum Packet Size (CONNACK); None when it has no limit.
        default: tensor bytes of a chunk where the broker allows it.

    Raises:
        TransportError: the broker's packets can't hold the smallest chunk; the text says what to raise.
    """
    if max_packet_bytes is None:
        return default
    chunk_bytes = min(default, max_packet_bytes - PACKET_OVERHEAD_BYTES)
    if chunk_bytes < MIN_CHUNK_BYTES:
        raise TransportError(
            f"the broker takes packets of at most {max_packet_bytes} bytes, too few for the smallest chunk: set max_packet_size in its "
            f"configuration to {default + PACKET_OVERHEAD_BYTES} or more ({MIN_CHUNK_BYTES + PACKET_OVERHEAD_BYTES} at the least)"
        )
    return chunk_bytes
