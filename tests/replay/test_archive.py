"""A round's bundle on disk: whole or named as damaged."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregator.archive import Archive
from aggregator.round_folder import RoundFolder
from federation.codec import file_digest
from federation.errors import ArchiveError


def filled(path: Path) -> RoundFolder:
    """Return a folder with a file of each kind."""
    folder = RoundFolder(path=path)
    for name in ("plan.json", "result.json", "global/manifest.json", "updates/n-0/manifest.json", "acks/n-0.json"):
        folder.add_payload(name, name.encode())
    for name in ("global/tensors.safetensors", "updates/n-0/tensors.safetensors"):
        folder.add_payload(name, bytes(range(256)) * 20)
    return folder


def contents(folder: RoundFolder) -> dict[str, bytes]:
    return {name: (folder.path / name).read_bytes() for name in folder.file_names()}


@contextmanager
def packed(path: Path) -> Iterator[tarfile.TarFile]:
    """Write a bundle by hand."""
    with (
        path.open("wb") as file,
        zstandard.ZstdCompressor().stream_writer(file) as compressed,
        tarfile.open(fileobj=compressed, mode="w|") as bundle,
    ):
        yield bundle


def test_what_goes_in_comes_out_and_the_same_round_gives_the_same_bytes(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "rounds")
    folder = filled(tmp_path / "in")
    assert archive.write(7, folder) == archive.bundle_file(7).stat().st_size
    first = archive.bundle_file(7).read_bytes()
    assert contents(archive.extract(7, tmp_path / "out")) == contents(folder)
    archive.write(7, filled(tmp_path / "again"))
    assert archive.bundle_file(7).read_bytes() == first
    assert archive.round_numbers() == [7]


def test_digest_file_is_what_sha256sum_reads(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.write(3, filled(tmp_path / "in"))
    assert archive.digest_file(3).read_text() == f"{file_digest(archive.bundle_file(3))}  000003.tar.zst\n"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_flipped_byte_of_bundle_or_digest_is_found_and_named(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("archive")
    archive = Archive(folder / "rounds")
    archive.write(2, filled(folder / "in"))
    file = data.draw(st.sampled_from([archive.bundle_file(2), archive.digest_file(2)]))
    content = bytearray(file.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    with pytest.raises(ArchiveError, match=r"round 2: 000002\.tar\.zst"):
        archive.extract(2, folder / "out")


@pytest.mark.parametrize("gone", ["bundle", "digest"])
def test_missing_file_is_named(tmp_path: Path, gone: str) -> None:
    archive = Archive(tmp_path / "rounds")
    archive.write(2, filled(tmp_path / "in"))
    (archive.bundle_file(2) if gone == "bundle" else archive.digest_file(2)).unlink()
    with pytest.raises(ArchiveError, match=r"round 2: .* is missing"):
        archive.extract(2, tmp_path / "out")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "updates/../../plan.json", "notes.txt", "updates/N/manifest.json"])
def test_bundle_with_foreign_names_writes_nothing_outside(tmp_path: Path, name: str) -> None:
    archive = Archive(tmp_path / "rounds")
    archive.folder.mkdir()
    with packed(archive.bundle_file(1)) as bundle:
        member = tarfile.TarInfo(name)
        member.size = 3
        bundle.addfile(member, io.BytesIO(b"bad"))
    archive.digest_file(1).write_text(f"{file_digest(archive.bundle_file(1))}  000001.tar.zst\n")
    with pytest.raises(ArchiveError, match="no file"):
        archive.extract(1, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) in (["rounds"], ["out", "rounds"])


def test_link_in_a_bundle_is_refused(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "rounds")
    archive.folder.mkdir()
    with packed(archive.bundle_file(1)) as bundle:
        member = tarfile.TarInfo("plan.json")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        bundle.addfile(member)
    archive.digest_file(1).write_text(f"{file_digest(archive.bundle_file(1))}  000001.tar.zst\n")
    with pytest.raises(ArchiveError, match="no file of a round"):
        archive.extract(1, tmp_path / "out")
