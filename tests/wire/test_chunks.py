from __future__ import annotations

import hashlib
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.chunk_format import MIN_CHUNK_BYTES, PACKET_OVERHEAD_BYTES, pack_header
from federation.chunks import DEFAULT_CHUNK_BYTES, Assembly, ChunkedFile, chunk_bytes_for, parse_chunk
from federation.errors import ChunkError, LocalProtocolError, RejectReason, RemoteProtocolError, TransportError
from federation.messages import GlobalManifest
from tests.wire.samples import chunked_params, manifest_of

HEADER_BYTES = 64
MAX_BYTES = 1 << 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ChunkedFile:
    """A transfer of twelve chunks of 1024 bytes, the last one shorter."""
    source = chunked_params(tmp_path_factory.mktemp("source"))
    assert source.num_chunks == 12
    assert source.total_bytes % 1024
    return source


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> ChunkedFile:
    """Another transfer of the same shape."""
    return chunked_params(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for each example: hypothesis shares tmp_path between them."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def assembly_in(folder: Path, *, expected_bytes: int | None = None, max_bytes: int = MAX_BYTES) -> Assembly:
    return Assembly(folder / "part", expected_bytes=expected_bytes, max_bytes=max_bytes)


def feed(assembly: Assembly, source: ChunkedFile, indices: range | list[int]) -> list[bool]:
    return [assembly.add_chunk(parse_chunk(source.payload(index))) for index in indices]


def header(*, index: int = 0, num_chunks: int = 1, total_bytes: int = 5, chunk_bytes: int = 1024) -> bytes:
    sha256 = hashlib.sha256(b"").hexdigest()
    return pack_header(index, num_chunks=num_chunks, total_bytes=total_bytes, chunk_bytes=chunk_bytes, transfer_sha256=sha256)


# --- one chunk ---------------------------------------------------------------------------------


def test_a_chunk_is_these_bytes() -> None:
    """Fixed for good: retained rounds of old runs are made of it."""
    sha256 = hashlib.sha256(b"").digest()
    expected = b"FMQC\x01\0\0\0" + struct.pack(">IIQI", 1, 2, 1500, 1024) + bytes(4) + sha256
    assert header(index=1, num_chunks=2, total_bytes=1500) == expected
    assert len(expected) == HEADER_BYTES


def test_a_chunk_says_what_it_belongs_to(source: ChunkedFile) -> None:
    chunk = parse_chunk(source.payload(11))
    assert (chunk.index, chunk.num_chunks, chunk.total_bytes, chunk.chunk_bytes) == (11, 12, source.total_bytes, 1024)
    assert chunk.transfer_sha256 == source.sha256
    assert bytes(chunk.data) == source.path.read_bytes()[11 * 1024 :]
    assert hashlib.sha256(chunk.data).hexdigest() == source.chunk_sha256[11]


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", RejectReason.CORRUPT),
        (header()[:63], RejectReason.CORRUPT),
        (b"FMQX" + header()[4:] + b"12345", RejectReason.CORRUPT),
        (b"FMQC\x02" + header()[5:] + b"12345", RejectReason.UNSUPPORTED_VERSION),
        (header()[:5] + b"\x01" + header()[6:] + b"12345", RejectReason.CORRUPT),
        (header()[:28] + b"\x01" + header()[29:] + b"12345", RejectReason.CORRUPT),
        (header() + b"1234", RejectReason.CORRUPT),
        (header() + b"123456", RejectReason.CORRUPT),
        (header(index=1) + b"12345", RejectReason.CORRUPT),
        (header(num_chunks=0, total_bytes=0), RejectReason.CORRUPT),
        (header(num_chunks=2) + b"12345", RejectReason.CORRUPT),
        (header(chunk_bytes=0) + b"12345", RejectReason.CORRUPT),
        (header(chunk_bytes=1) + b"12345", RejectReason.CORRUPT),
        (header(total_bytes=2**63, num_chunks=2**31), RejectReason.OVERSIZED),
        (header(total_bytes=2**64 - 1, num_chunks=2**32 - 1, chunk_bytes=2**32 - 1), RejectReason.OVERSIZED),
        (header(total_bytes=1024 * 16_385, num_chunks=16_385) + bytes(1024), RejectReason.OVERSIZED),
    ],
)
def test_a_chunk_that_contradicts_itself_is_refused(payload: bytes, reason: RejectReason) -> None:
    with pytest.raises(ChunkError) as caught:
        parse_chunk(payload)
    assert caught.value.reason == reason


@given(st.data())
@settings(max_examples=300)
def test_a_flipped_bit_is_refused_or_told_by_the_digest(source: ChunkedFile, data: st.DataObject) -> None:
    """A flip in the header contradicts it, or names another transfer; one in the data changes the chunk's digest."""
    payload = bytearray(source.payload(3))
    bit = data.draw(st.integers(0, 8 * len(payload) - 1))
    payload[bit // 8] ^= 1 << (bit % 8)
    try:
        chunk = parse_chunk(payload)
    except ChunkError:
        assert bit < 8 * HEADER_BYTES
        return
    if chunk.transfer_sha256 == source.sha256 and chunk.total_bytes == source.total_bytes:
        assert hashlib.sha256(chunk.data).hexdigest() != source.chunk_sha256[chunk.index]


@given(st.integers(0, 1023 + HEADER_BYTES))
def test_a_truncated_chunk_is_refused(source: ChunkedFile, num_bytes: int) -> None:
    with pytest.raises(ChunkError):
        parse_chunk(source.payload(0)[:num_bytes])


# --- chunk size --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_packet_bytes", "expected"),
    [
        (None, DEFAULT_CHUNK_BYTES),
        (4 << 20, DEFAULT_CHUNK_BYTES),
        (100_000, 100_000 - PACKET_OVERHEAD_BYTES),
        (MIN_CHUNK_BYTES + PACKET_OVERHEAD_BYTES, MIN_CHUNK_BYTES),
    ],
)
def test_chunks_fit_the_brokers_packets(max_packet_bytes: int | None, expected: int) -> None:
    assert chunk_bytes_for(max_packet_bytes) == expected


def test_a_broker_for_tiny_packets_is_refused_with_what_to_set() -> None:
    with pytest.raises(TransportError, match=r"max_packet_size .* to \d+"):
        chunk_bytes_for(MIN_CHUNK_BYTES + PACKET_OVERHEAD_BYTES - 1)


# --- a file as chunks --------------------------------------------------------------------------


def test_a_file_is_described_by_its_digests(source: ChunkedFile) -> None:
    content = source.path.read_bytes()
    assert source.sha256 == hashlib.sha256(content).hexdigest()
    assert source.chunk_sha256 == tuple(hashlib.sha256(content[i : i + 1024]).hexdigest() for i in range(0, len(content), 1024))
    assert b"".join(source.payload(index)[HEADER_BYTES:] for index in range(source.num_chunks)) == content


def test_chunks_can_be_read_from_many_threads(source: ChunkedFile) -> None:
    expected = [source.payload(index) for index in range(source.num_chunks)]
    found: list[list[bytes]] = []
    threads = [threading.Thread(target=lambda: found.append([source.payload(i) for i in range(source.num_chunks)])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8


def test_a_chunk_that_does_not_exist_and_a_file_that_shrank_are_our_own_errors(tmp_path: Path) -> None:
    source = chunked_params(tmp_path)
    for index in (-1, source.num_chunks):
        with pytest.raises(LocalProtocolError):
            source.payload(index)
    source.path.write_bytes(source.path.read_bytes()[:2000])
    with pytest.raises(LocalProtocolError, match="shrunk"):
        source.payload(1)
    (tmp_path / "empty").touch()
    with pytest.raises(LocalProtocolError):
        ChunkedFile(tmp_path / "empty")


# --- assembly ----------------------------------------------------------------------------------


@given(st.data())
def test_any_order_with_duplicates_and_the_manifest_anywhere(source: ChunkedFile, data: st.DataObject) -> None:
    deliveries: list[int | None] = [*range(source.num_chunks), None]
    deliveries += data.draw(st.lists(st.sampled_from(deliveries), max_size=10))
    with tempfile.TemporaryDirectory() as name:
        assembly = assembly_in(Path(name), expected_bytes=source.total_bytes)
        seen = set()
        for delivery in data.draw(st.permutations(deliveries)):
            if delivery is None:
                assembly.set_manifest(manifest_of(source))
            else:
                assert assembly.add_chunk(parse_chunk(source.payload(delivery))) is (delivery not in seen)
                seen.add(delivery)
            assert assembly.received_bytes == sum(min(1024, source.total_bytes - 1024 * index) for index in seen)
        assert assembly.is_complete
        assert assembly.missing() == []
        assert assembly.num_corrupt == 0
        assert assembly.finish().read_bytes() == source.path.read_bytes()


@given(lost=st.sets(st.integers(0, 11)), manifest_first=st.booleans())
def test_what_was_lost_is_named_and_its_second_sending_completes(source: ChunkedFile, lost: set[int], *, manifest_first: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        assembly = assembly_in(Path(name))
        if manifest_first:
            assembly.set_manifest(manifest_of(source))
        feed(assembly, source, [index for index in range(12) if index not in lost])
        assembly.set_manifest(manifest_of(source))
        assert assembly.missing() == sorted(lost)
        assert assembly.is_complete is (not lost)
        if lost:
            with pytest.raises(LocalProtocolError):
                assembly.finish()
        assert all(feed(assembly, source, sorted(lost)))
        assert assembly.finish().read_bytes() == source.path.read_bytes()


@given(damage=st.dictionaries(st.integers(0, 11), st.integers(0, 1023), min_size=1), manifest_first=st.booleans())
def test_corrupt_chunks_are_missing_and_healed(source: ChunkedFile, damage: dict[int, int], *, manifest_first: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        assembly = assembly_in(Path(name))
        if manifest_first:
            assembly.set_manifest(manifest_of(source))
        for index in range(12):
            payload = bytearray(source.payload(index))
            if index in damage:
                payload[HEADER_BYTES + damage[index] % (len(payload) - HEADER_BYTES)] ^= 0x10
            assembly.add_chunk(parse_chunk(payload))
        assembly.set_manifest(manifest_of(source))
        assert assembly.missing() == sorted(damage)
        assert assembly.num_corrupt == len(damage)
        feed(assembly, source, sorted(damage))
        assert assembly.finish().read_bytes() == source.path.read_bytes()


def test_the_manifest_decides_which_transfer_counts(source: ChunkedFile, other: ChunkedFile, folder: Path) -> None:
    assembly = assembly_in(folder)
    assert feed(assembly, other, [0, 1]) == [True, True]
    assert feed(assembly, source, [0, 1]) == [False, False]
    assembly.set_manifest(manifest_of(source))
    assert assembly.received_bytes == 0
    assert feed(assembly, other, range(12)) == [False] * 12
    assert feed(assembly, source, range(12)) == [True] * 12
    assert assembly.finish().read_bytes() == source.path.read_bytes()


def test_a_second_manifest_starts_anew_for_its_transfer(source: ChunkedFile, other: ChunkedFile, folder: Path) -> None:
    assembly = assembly_in(folder)
    assembly.set_manifest(manifest_of(source))
    feed(assembly, source, range(12))
    assembly.set_manifest(manifest_of(other))
    assert assembly.missing() == list(range(12))
    feed(assembly, other, range(12))
    assert assembly.finish().read_bytes() == other.path.read_bytes()


def test_the_same_file_in_chunks_of_another_size_is_another_transfer(tmp_path: Path, source: ChunkedFile) -> None:
    larger = ChunkedFile(source.path, 2048)
    assembly = assembly_in(tmp_path)
    assembly.set_manifest(manifest_of(larger))
    assert feed(assembly, source, range(12)) == [False] * 12
    assert all(feed(assembly, larger, range(larger.num_chunks)))
    assert assembly.finish().read_bytes() == source.path.read_bytes()


def test_a_finished_assembly_keeps_its_file_until_discarded(source: ChunkedFile, other: ChunkedFile, folder: Path) -> None:
    assembly = assembly_in(folder)
    assembly.set_manifest(manifest_of(source))
    feed(assembly, source, range(12))
    path = assembly.finish()
    assembly.set_manifest(manifest_of(other))
    assert feed(assembly, other, range(12)) == [False] * 12
    assert assembly.finish().read_bytes() == source.path.read_bytes()
    assembly.discard()
    assert not path.exists()
    assert not assembly.is_complete
    assert assembly.received_bytes == 0
    assert all(feed(assembly, other, range(12)))


def test_a_manifest_whose_whole_contradicts_its_chunks_is_corrupt(source: ChunkedFile, folder: Path) -> None:
    lying = manifest_of(source).model_copy(update={"sha256": "0" * 64})
    assembly = assembly_in(folder)
    assembly.set_manifest(lying)
    for index in range(12):
        chunk = parse_chunk(source.payload(index)[:32] + bytes(32) + source.payload(index)[HEADER_BYTES:])
        assert assembly.add_chunk(chunk)
    with pytest.raises(ChunkError) as caught:
        assembly.finish()
    assert caught.value.reason == RejectReason.CORRUPT


def test_an_old_file_at_the_path_is_not_mixed_in(source: ChunkedFile, folder: Path) -> None:
    (folder / "part").write_bytes(b"x" * 100_000)
    assembly = assembly_in(folder)
    feed(assembly, source, range(12))
    assembly.set_manifest(manifest_of(source))
    assert assembly.finish().read_bytes() == source.path.read_bytes()


def test_what_is_missing_is_unknown_without_a_manifest(source: ChunkedFile, folder: Path) -> None:
    assembly = assembly_in(folder)
    feed(assembly, source, range(12))
    assert not assembly.is_complete
    with pytest.raises(LocalProtocolError):
        assembly.missing()


# --- lies --------------------------------------------------------------------------------------

sizes = st.one_of(st.integers(1, 2**63), st.sampled_from([1, 1023, 1024, 1025, 11_999, MAX_BYTES, MAX_BYTES + 1, 2**31, 2**32, 2**63]))


@given(total_bytes=sizes, chunk_bytes=sizes, num_digests=st.integers(0, 40))
@settings(max_examples=300)
def test_a_lying_manifest_changes_nothing_and_allocates_nothing(
    source: ChunkedFile, total_bytes: int, chunk_bytes: int, num_digests: int
) -> None:
    """Past validation of the message (`model_construct`), so that the assembly stands on its own."""
    fields = manifest_of(source).model_dump()
    fields.update(total_bytes=total_bytes, chunk_bytes=chunk_bytes, chunk_sha256=["0" * 64] * num_digests)
    lying = GlobalManifest.model_construct(**fields)
    is_consistent = total_bytes <= MAX_BYTES and -(-total_bytes // chunk_bytes) == num_digests
    with tempfile.TemporaryDirectory() as name:
        assembly = assembly_in(Path(name))
        feed(assembly, source, [0, 5])
        if is_consistent:
            assembly.set_manifest(lying)
            assert assembly.missing() == list(range(num_digests))
            return
        with pytest.raises(ChunkError) as caught:
            assembly.set_manifest(lying)
        assert caught.value.reason == (RejectReason.OVERSIZED if total_bytes > MAX_BYTES else RejectReason.INVALID_MANIFEST)
        assembly.set_manifest(manifest_of(source))
        assert assembly.missing() == [index for index in range(12) if index not in {0, 5}]


def test_a_transfer_of_another_size_than_the_model_is_refused(source: ChunkedFile, folder: Path) -> None:
    assembly = assembly_in(folder, expected_bytes=source.total_bytes + 4)
    with pytest.raises(ChunkError) as caught:
        feed(assembly, source, [0])
    assert caught.value.reason == RejectReason.WRONG_SHAPE
    with pytest.raises(ChunkError) as caught:
        assembly.set_manifest(manifest_of(source))
    assert caught.value.reason == RejectReason.WRONG_SHAPE
    assert list(folder.iterdir()) == []


def test_a_transfer_over_the_limit_is_refused(source: ChunkedFile, folder: Path) -> None:
    assembly = assembly_in(folder, max_bytes=source.total_bytes - 1)
    for act in (lambda: feed(assembly, source, [0]), lambda: assembly.set_manifest(manifest_of(source))):
        with pytest.raises(ChunkError) as caught:
            act()
        assert caught.value.reason == RejectReason.OVERSIZED


@given(
    st.lists(
        st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)), max_size=5
    )
)
def test_claimed_sizes_take_no_disk(claims: list[tuple[int, int, int, int]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        assembly = assembly_in(Path(name))
        for index, num_chunks, total_bytes, chunk_bytes in claims:
            payload = header(index=index, num_chunks=num_chunks, total_bytes=total_bytes, chunk_bytes=chunk_bytes) + bytes(1024)
            try:
                assembly.add_chunk(parse_chunk(payload))
            except RemoteProtocolError:
                continue
        blocks = sum(path.stat().st_blocks for path in Path(name).iterdir())
        assert blocks * 512 <= len(claims) * 8192
