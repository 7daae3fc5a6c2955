"""A power cut at any moment: afterwards a disk holds the content and the names that were synced, and nothing else.

Stricter than a real disk, which keeps some of what was never synced: a file has the bytes of its last fsync (none before the first),
a folder the names of its own.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest


class PowerLost(BaseException):
    """The machine is off. No code under test catches it."""


class Disk:
    """Folders whose syncs are watched.

    Args:
        root: whose own names are taken as synced.
        monkeypatch: puts `os.fsync` back after the test.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = root
        self._files: dict[int, bytes] = {}
        self._folders: dict[int, dict[str, tuple[int, bool]]] = {}
        self._fail_at: int | None = None
        self._held: dict[int, int] = {}
        """Synced files and folders, kept open: what is deleted but not synced away must not give its number to another."""
        self.num_syncs = 0
        monkeypatch.setattr(os, "fsync", self._sync)

    def cut_at(self, num_syncs: int | None) -> None:
        """Lose the power just before so many syncs have been done; None: never."""
        self._fail_at = num_syncs

    def restore(self) -> None:
        """Put what a power cut now would leave in place of everything under the root."""
        survivors = self._root.with_name(f"{self._root.name}-survivors")
        survivors.mkdir()
        for name, (inode, is_folder) in _names(self._root).items():
            self._write(inode, survivors / name, is_folder=is_folder)
        shutil.rmtree(self._root)
        survivors.rename(self._root)
        self.close()
        for path in [self._root, *self._root.rglob("*")]:
            # What has survived is on the disk.
            if path.is_dir():
                self._folders[path.stat().st_ino] = _names(path)
            else:
                self._files[path.stat().st_ino] = path.read_bytes()

    def close(self) -> None:
        """Forget what was synced."""
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()
        self._files.clear()
        self._folders.clear()

    def _sync(self, descriptor: int) -> None:
        if self._fail_at is not None and self.num_syncs >= self._fail_at:
            raise PowerLost
        self.num_syncs += 1
        status = os.fstat(descriptor)
        if status.st_ino not in self._held:
            self._held[status.st_ino] = os.dup(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if stat.S_ISDIR(status.st_mode):
            self._folders[status.st_ino] = _names(path)
        else:
            self._files[status.st_ino] = path.read_bytes()

    def _write(self, inode: int, path: Path, *, is_folder: bool) -> None:
        if not is_folder:
            path.write_bytes(self._files.get(inode, b""))
            return
        path.mkdir()
        for name, (child, is_child_folder) in self._folders.get(inode, {}).items():
            self._write(child, path / name, is_folder=is_child_folder)


def _names(folder: Path) -> dict[str, tuple[int, bool]]:
    return {entry.name: (entry.inode(), entry.is_dir()) for entry in os.scandir(folder)}
