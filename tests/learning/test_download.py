"""Fetching from a real HTTP server on this machine: checked, cached, continued where it broke off."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from federation.download import MAX_ATTEMPTS, fetch
from federation.errors import DataError
from federation.known_datasets import RemoteFile

CONTENT = bytes(range(256)) * 12_000
"""3 MB: more than one block."""


class Shelf(ThreadingHTTPServer):
    """Serves CONTENT, and hangs up after `hang_up_after` bytes of each answer while `num_hang_ups` lasts."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.starts: list[int] = []
        self.num_hang_ups = 0
        self.hang_up_after = 1_000_000
        self.honours_ranges = True

    def file(self, *, content: bytes = CONTENT) -> RemoteFile:
        """Return a file of this server whose checksum is that of `content`."""
        digest = md5(content, usedforsecurity=False).hexdigest()
        return RemoteFile(url=f"http://127.0.0.1:{self.server_port}/x.npz", md5=digest, name="sets/x.npz")


class Answer(BaseHTTPRequestHandler):
    """One request: the whole, or from a byte on."""

    server: Shelf

    def do_GET(self) -> None:
        """Answer, or break off."""
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked and self.server.honours_ranges else 0
        self.server.starts.append(start)
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        if self.server.num_hang_ups > 0:
            self.server.num_hang_ups -= 1
            self.wfile.write(CONTENT[start : start + self.server.hang_up_after])
            self.close_connection = True
            return
        self.wfile.write(CONTENT[start:])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
        """Keep the test's output clean."""


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with Shelf() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_fetched_once_and_kept(shelf: Shelf, tmp_path: Path) -> None:
    for _ in range(2):
        path = fetch(shelf.file(), tmp_path)
        assert path.read_bytes() == CONTENT
    assert path == tmp_path / "sets" / "x.npz"
    assert shelf.starts == [0]
    assert [entry.name for entry in path.parent.iterdir()] == ["x.npz"]


def test_continues_where_the_connection_broke(shelf: Shelf, tmp_path: Path) -> None:
    shelf.num_hang_ups = 2
    assert fetch(shelf.file(), tmp_path).read_bytes() == CONTENT
    assert shelf.starts == [0, 1_000_000, 2_000_000]


def test_continues_after_a_restart(shelf: Shelf, tmp_path: Path) -> None:
    """What one process fetched before it gave up, the next does not fetch again."""
    shelf.num_hang_ups, shelf.hang_up_after = MAX_ATTEMPTS, 100_000
    with pytest.raises(DataError, match=r"x\.npz can't be fetched.*put x\.npz into the folder of FEDMQ_DATA_DIR"):
        fetch(shelf.file(), tmp_path)
    assert fetch(shelf.file(), tmp_path).read_bytes() == CONTENT
    assert shelf.starts[-1] == MAX_ATTEMPTS * 100_000


def test_a_server_that_ignores_ranges(shelf: Shelf, tmp_path: Path) -> None:
    """It sends the whole again, and so it is taken."""
    shelf.num_hang_ups, shelf.honours_ranges = 1, False
    assert fetch(shelf.file(), tmp_path).read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_thrown_away(shelf: Shelf, tmp_path: Path) -> None:
    part = tmp_path / "sets" / "x.npz.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT + b"more")
    assert fetch(shelf.file(), tmp_path).read_bytes() == CONTENT


def test_other_bytes_than_promised_are_refused(shelf: Shelf, tmp_path: Path) -> None:
    """And not kept: the next attempt starts from nothing."""
    with pytest.raises(DataError, match="can't be fetched"):
        fetch(shelf.file(content=b"something else"), tmp_path)
    assert list((tmp_path / "sets").iterdir()) == []


def test_a_damaged_copy_in_the_cache_is_fetched_again(shelf: Shelf, tmp_path: Path) -> None:
    path = fetch(shelf.file(), tmp_path)
    path.write_bytes(CONTENT[:-1])
    assert fetch(shelf.file(), tmp_path).read_bytes() == CONTENT


def test_no_server(tmp_path: Path) -> None:
    with Shelf() as closed:
        file = closed.file()
    with pytest.raises(DataError, match="can't be fetched"):
        fetch(file, tmp_path)


def test_progress_is_drawn_on_standard_error(shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(shelf.file(), tmp_path, progress=True)
    captured = capsys.readouterr()
    assert captured.err.endswith("x.npz: 3.1 of 3.1 MB\n")
    assert captured.out == ""
