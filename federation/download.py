"""Fetching a known data set's files: checked, cached, resumed where the last attempt broke off."""

from __future__ import annotations

import http.client
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pooch

from federation.errors import DataError
from federation.known_datasets import RemoteFile

BLOCK_BYTES = 1 << 20

TIMEOUT_SECONDS = 30.0
"""Longest silence of the server before an attempt counts as broken."""

MAX_ATTEMPTS = 5
"""Each continues where the last one broke off."""


def fetch(file: RemoteFile, cache_dir: Path, *, progress: bool = False) -> Path:
    """Return the file's path in the cache, after fetching it if it is not there whole.

    Args:
        file: what to fetch; a cached copy with another checksum is fetched again.
        cache_dir: made if need be; an unfinished download stays there as NAME.part and is continued.
        progress: draw a progress line on standard error.

    Raises:
        DataError: the server can't be reached or sends other bytes; says where to put the file by hand.
    """
    # It would announce each download on standard error by itself, asked or not.
    pooch.get_logger().setLevel("WARNING")
    downloader = _Downloader(cache_dir / f"{file.name}.part", _draw if progress else _ignore)
    try:
        (cache_dir / file.name).parent.mkdir(parents=True, exist_ok=True)
        path = pooch.retrieve(file.url, known_hash=f"md5:{file.md5}", fname=file.name, path=cache_dir, downloader=downloader)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DataError(
            f"{file.url} can't be fetched ({error}): try again, or put {Path(file.name).name} into the folder of FEDMQ_DATA_DIR "
            "(under Compose: DATA_DIR in .env; MNIST's and CIFAR-10's original files into a sub-folder mnist or cifar10 of it)"
        ) from None
    return Path(path)


class _Downloader:
    """What pooch calls to fetch one file; pooch checks the checksum and moves the file into place."""

    def __init__(self, part: Path, report: Callable[[str, int, int], None]) -> None:
        self._part = part
        self._report = report

    def __call__(self, url: str, output_file: str | IO[bytes], _pooch: object) -> None:
        fault: Exception | None = None
        for _ in range(MAX_ATTEMPTS):
            try:
                self._continue(url)
            except (OSError, http.client.HTTPException) as error:
                fault = error
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
                    if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                        # The part is longer than the file: it is of no use.
                        self._part.unlink(missing_ok=True)
            else:
                shutil.move(self._part, str(output_file))
                return
        raise OSError(str(fault))

    def _continue(self, url: str) -> None:
        num_had = self._part.stat().st_size if self._part.exists() else 0
        request = urllib.request.Request(url, headers={"Range": f"bytes={num_had}-"} if num_had else {})  # noqa: S310 - addresses are constants
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310
            is_continued = response.status == http.client.PARTIAL_CONTENT
            num_had = num_had if is_continued else 0
            num_bytes = num_had + int(response.headers.get("Content-Length", 0))
            with self._part.open("ab" if is_continued else "wb") as part:
                while block := response.read(BLOCK_BYTES):
                    part.write(block)
                    num_had += len(block)
                    self._report(self._part.stem, num_had, num_bytes)
        if num_bytes and num_had < num_bytes:
            raise OSError(f"connection closed after {num_had} of {num_bytes} bytes")


def _draw(name: str, num_had: int, num_bytes: int) -> None:
    end = "\n" if num_had >= num_bytes else ""
    sys.stderr.write(f"\r{name}: {num_had / 1e6:.1f} of {num_bytes / 1e6:.1f} MB{end}")
    sys.stderr.flush()


def _ignore(*_: Any) -> None:
    """Draw nothing."""
