"""A disk that a test can fill, empty and make read-only: a tmpfs of a few bytes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

BALLAST = "ballast"


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Mount a file system of a few bytes on a new folder; skips the test where this user may not."""
    folder.mkdir(parents=True)
    mount = shutil.which("mount")
    mounted = (
        mount is not None and subprocess.run([mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=False).returncode == 0
    )
    if not mounted:
        pytest.skip("needs the right to mount a tmpfs: run as root")
    try:
        yield
    finally:
        # Lazily: a process of the test that is still ending must not keep the others from running.
        subprocess.run(["umount", "-l", folder], check=True)


def remount(folder: Path, option: str) -> None:
    """Change a mounted disk: `size=8m`, `ro`, `rw`."""
    subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)


def fill(folder: Path) -> None:
    """Leave no byte free."""
    with suppress(OSError), (folder / BALLAST).open("ab", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def make_room(folder: Path) -> None:
    """Free what `fill` took."""
    (folder / BALLAST).unlink()
