"""The run's audit record on disk: one compressed bundle a round, beside its digest.

{out_dir}/rounds/000007.tar.zst          the round's folder (aggregator/round_folder.py)
{out_dir}/rounds/000007.tar.zst.sha256   its SHA-256, as `sha256sum -c` reads it; written last

The digest finds a disk's faults. What a person changed, bundle and digest together, is found by replay: by the
chunks' digests, the hash chain of the results, and the signatures.
"""

from __future__ import annotations

import os
import re
import secrets
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import zstandard

from aggregator.checkpoint import write_atomically
from aggregator.round_folder import TENSORS, RoundFolder
from federation.codec import file_digest, sync
from federation.errors import ArchiveError
from federation.messages import MAX_MESSAGE_BYTES, MAX_PARAMS_BYTES

COMPRESSION_LEVEL = 1
"""Trained float32 weights shrink by 7 % at any level; the first is the fastest."""

MAX_WINDOW_BYTES = 8 << 20
"""Memory that unpacking a bundle may claim: zstd's own default for streams, far above what level 1 asks for."""

COPY_BYTES = 1 << 20

_BUNDLE_NAME = re.compile(r"(\d{6,10})\.tar\.zst")


class Archive:
    """The bundles of one run. One process writes, any may read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def round_numbers(self) -> list[int]:
        """Return the archived rounds, in order."""
        names = (_BUNDLE_NAME.fullmatch(file.name) for file in self.folder.glob("*.tar.zst"))
        return sorted(int(name.group(1)) for name in names if name)

    def bundle_file(self, round_number: int) -> Path:
        """Return where a round's bundle is, or will be."""
        return self.folder / f"{round_number:06d}.tar.zst"

    def digest_file(self, round_number: int) -> Path:
        """Return where the digest of a round's bundle is, or will be."""
        return self.folder / f"{round_number:06d}.tar.zst.sha256"

    def write(self, round_number: int, source: RoundFolder) -> int:
        """Store a round, durably, replacing what was stored of it; return the bundle's size in bytes.

        Raises:
            OSError: the disk is full or fails; the bundle is as it was.
        """
        if not self.folder.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            sync(self.folder.parent)
        bundle = self.bundle_file(round_number)
        # A name of its own: a zombie that shares this disk may be packing the same round.
        draft = bundle.with_name(f".{bundle.name}.{secrets.token_hex(4)}.part")
        try:
            with draft.open("wb") as file:
                _pack(source, file)
                file.flush()
                os.fsync(file.fileno())
            digest = file_digest(draft)
            if _is_stored(digest, bundle, self.digest_file(round_number)):
                return bundle.stat().st_size
            # Without its digest a bundle counts as damaged, never as another round's.
            self.digest_file(round_number).unlink(missing_ok=True)
            draft.replace(bundle)
            sync(self.folder)
        finally:
            draft.unlink(missing_ok=True)
        write_atomically(self.digest_file(round_number), _digest_line(digest, bundle), durable=True)
        return bundle.stat().st_size

    def extract(self, round_number: int, into: Path) -> RoundFolder:
        """Check a bundle against its digest and unpack it into an empty folder.

        Raises:
            ArchiveError: it is missing, damaged, or holds what no round holds; the text names the file.
        """
        bundle = self.bundle_file(round_number)
        folder = RoundFolder(path=into)
        try:
            _check_digest(bundle, self.digest_file(round_number))
            _unpack(bundle, folder)
        except FileNotFoundError as error:
            raise ArchiveError(f"round {round_number}: {Path(str(error.filename)).name} is missing from {self.folder}") from None
        except (OSError, EOFError, tarfile.TarError, zstandard.ZstdError, ArchiveError) as error:
            raise ArchiveError(f"round {round_number}: {bundle.name}: {error}") from None
        return folder

    def read_payload(self, round_number: int, name: str) -> bytes:
        """Return one payload of a round's bundle, which is checked against its digest.

        Raises:
            ArchiveError: the bundle is missing or damaged, or holds no such payload.
        """
        bundle = self.bundle_file(round_number)
        try:
            _check_digest(bundle, self.digest_file(round_number))
            with _opened(bundle) as members:
                for member, content in members:
                    if member.name == name and member.size <= MAX_MESSAGE_BYTES:
                        return content.read()
        except (OSError, EOFError, tarfile.TarError, zstandard.ZstdError, ArchiveError) as error:
            raise ArchiveError(f"round {round_number}: {bundle.name}: {error}") from None
        raise ArchiveError(f"round {round_number}: {bundle.name} holds no {name}")


def _check_digest(bundle: Path, digest_file: Path) -> None:
    if digest_file.read_bytes() != _digest_line(file_digest(bundle), bundle):
        raise ArchiveError(f"does not match {digest_file.name}: one of the two was changed")


def _is_stored(digest: str, bundle: Path, digest_file: Path) -> bool:
    line = _digest_line(digest, bundle)
    return bundle.exists() and digest_file.exists() and digest_file.read_bytes() == line and file_digest(bundle) == digest


def _digest_line(digest: str, bundle: Path) -> bytes:
    return f"{digest}  {bundle.name}\n".encode()


def _pack(source: RoundFolder, file: IO[bytes]) -> None:
    # No names, times or owners of this machine: the same round gives the same bytes.
    # zstd, not gzip: a round of a 44.7 MB model is 180 MB, which gzip takes 6 s of a core for.
    compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL, write_checksum=True)
    with (
        compressor.stream_writer(file, closefd=False) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.USTAR_FORMAT) as bundle,
    ):
        for name in source.file_names():
            path = source.path / name
            member = tarfile.TarInfo(name)
            member.size, member.mode = path.stat().st_size, 0o600
            with path.open("rb") as content:
                bundle.addfile(member, content)


def _unpack(bundle: Path, folder: RoundFolder) -> None:
    """Write out a bundle's files; nothing else in it is touched, whatever it calls itself."""
    with _opened(bundle) as members:
        for member, content in members:
            with folder.place(member.name).open("xb") as unpacked:
                for data in _pieces(content):
                    unpacked.write(data)


@contextmanager
def _opened(bundle: Path) -> Iterator[Iterator[tuple[tarfile.TarInfo, IO[bytes]]]]:
    """Open a bundle for its files, in order; each is read before the next is asked for."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    with (
        bundle.open("rb") as file,
        decompressor.stream_reader(file) as content_reader,
        tarfile.open(fileobj=content_reader, mode="r|") as archive,
    ):
        yield _members(archive)


def _members(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    for member in archive:
        limit = MAX_PARAMS_BYTES if member.name.endswith(TENSORS) else MAX_MESSAGE_BYTES
        content = archive.extractfile(member) if member.isreg() else None
        if content is None or member.size > limit:
            raise ArchiveError(f"it holds {member.name[:120]!r}, which is no file of a round")
        yield member, content


def _pieces(content: IO[bytes]) -> Iterator[bytes]:
    while data := content.read(COPY_BYTES):
        yield data
