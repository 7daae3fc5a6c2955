"""Ten thousand payloads that nobody meant: each is taken whole or refused by the one family of errors."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random

from federation.chunks import Assembly, parse_chunk
from federation.codec import decode, encode
from federation.errors import RejectReason, RemoteProtocolError
from federation.messages import parse
from federation.params import signature_of
from federation.topics import parse_topic
from tests.wire.samples import MESSAGE_TYPES, MESSAGES, chunked_params, manifest_of, small_params

NUM_PAYLOADS = 10_000
MAX_PEAK_BYTES = 8 << 20
MAX_DETAIL_CHARACTERS = 2000
"""A log line, and an ack's reason after shortening."""


def mutated(random: Random, payload: bytes) -> bytes:
    """Return a payload with a few bytes flipped, cut out, doubled or put in."""
    changed = bytearray(payload)
    for _ in range(random.randrange(1, 6)):
        position = random.randrange(len(changed) + 1)
        match random.randrange(5):
            case 0:
                changed[position : position + 1] = random.randbytes(1)
            case 1:
                del changed[position : position + random.randrange(1, 50)]
            case 2:
                changed[position:position] = changed[position : position + random.randrange(1, 50)]
            case 3:
                changed[position:position] = random.choice(
                    [b"9" * 40, b"-1", b"1e999", b"\xff\xfe", b"\0" * 8, b'"a":', b"[" * 500, b"NaN"]
                )
            case _:
                changed[position : position + 8] = random.choice([2**63, 2**64 - 1, 2**31, 0]).to_bytes(8, random.choice(["big", "little"]))
    return bytes(changed)


def hostile(random: Random, good: list[bytes]) -> bytes:
    return random.randbytes(random.randrange(600)) if random.random() < 0.3 else mutated(random, random.choice(good))


def feed(readers: Sequence[Callable[[bytes], object]], good: list[bytes], seed: int) -> Counter[RejectReason]:
    """Give hostile payloads to the readers in turn; return how often each reason was given."""
    random = Random(seed)
    reasons: Counter[RejectReason] = Counter()
    longest = 0
    tracemalloc.start()
    try:
        for index in range(NUM_PAYLOADS):
            try:
                readers[index % len(readers)](hostile(random, good))
            except RemoteProtocolError as error:
                longest = max(longest, len(str(error)))
                reasons[error.reason] += 1
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < MAX_PEAK_BYTES
    assert longest < MAX_DETAIL_CHARACTERS
    return reasons


def test_topics() -> None:
    good = [b"fedmq/v2/run/rounds/3/updates/node-0/chunks/17", b"fedmq/v2/run/state", b"fedmq/v2/run/rounds/1/global/manifest"]
    reasons = feed([lambda payload: parse_topic(payload.decode("utf-8", "replace"))], good, seed=1)
    assert set(reasons) <= {RejectReason.UNKNOWN_TOPIC, RejectReason.UNSUPPORTED_VERSION}
    assert reasons[RejectReason.UNKNOWN_TOPIC] > NUM_PAYLOADS / 2


def test_messages() -> None:
    readers = [partial(parse, kind) for kind in MESSAGE_TYPES]
    reasons = feed(readers, [message.to_payload() for message in MESSAGES], seed=2)
    assert set(reasons) <= {RejectReason.INVALID_MESSAGE, RejectReason.UNSUPPORTED_VERSION}
    assert reasons.total() > NUM_PAYLOADS / 2


def test_tensors() -> None:
    signature = signature_of(small_params())
    readers = [lambda payload: decode(payload, None), lambda payload: decode(payload, signature)]
    reasons = feed(readers, [encode(small_params(num_values=100)), encode({})], seed=3)
    assert reasons[RejectReason.CORRUPT] > NUM_PAYLOADS / 3
    assert set(reasons) <= {RejectReason.CORRUPT, RejectReason.WRONG_SHAPE, RejectReason.WRONG_DTYPE}


def test_chunks_and_their_assembly(tmp_path: Path) -> None:
    """The true transfer comes through all the same, once the noise has passed."""
    source = chunked_params(tmp_path)
    good = [source.payload(index) for index in range(source.num_chunks)]
    with tempfile.TemporaryDirectory() as name:
        assembly = Assembly(Path(name) / "part", expected_bytes=source.total_bytes, max_bytes=1 << 20)
        reasons = feed([lambda payload: assembly.add_chunk(parse_chunk(payload))], good, seed=4)
        assert reasons[RejectReason.CORRUPT] > NUM_PAYLOADS / 3
        assembly.set_manifest(manifest_of(source))
        for index in assembly.missing():
            assembly.add_chunk(parse_chunk(source.payload(index)))
        assert assembly.finish().read_bytes() == source.path.read_bytes()
