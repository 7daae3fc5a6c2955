"""What a fault test sees and changes inside a shipped process: what is on the disk for good, and what time it is.

`sitecustomize.py` beside this file installs it in each process that has this folder on its PYTHONPATH, before anything
of FedMQ is imported. It changes nothing where neither variable is set.

FAULTS_LEDGER is a folder; `ledger.jsonl` in it tells a power cut (tests/faults/power_cut.py) what the process made durable:

    {"synced": INODE, "size": BYTES, "mtime_ns": NS}     fsync of a file: this content stays
    {"synced": 0}                                        fsync of a folder
    {"replaced": PATH, "source": PATH, "kept": NAME}     a rename; `kept` is what stood there before, empty where nothing did
    {"unlinked": PATH, "kept": NAME}

A file system with an ordered journal (ext4) makes every rename and removal durable with the next fsync of whatever file;
so those since the last "synced" line are the ones that a power cut may undo.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

LEDGER = "FAULTS_LEDGER"
CLOCK_OFFSET = "FAULTS_CLOCK_OFFSET_SECONDS"


class _Ledger:
    """Writes down what the process does to its files."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._numbers = count()
        self._kept: list[Path] = []
        self.fsync = os.fsync
        self.replace = os.replace
        self.rename = os.rename
        self.unlink = os.unlink

    def note_sync(self, descriptor: int) -> None:
        folder = _folder()
        if folder is None:
            return
        facts = os.fstat(descriptor)
        is_file = stat.S_ISREG(facts.st_mode)
        line = {"synced": facts.st_ino, "size": facts.st_size, "mtime_ns": facts.st_mtime_ns} if is_file else {"synced": 0}
        with self._lock:
            self._write(folder, line)
            for path in self._kept:
                with suppress(OSError):
                    self.unlink(path)
            self._kept.clear()

    def keep(self, path: str, **line: str) -> None:
        """Hold on to what is at `path` and write the line down, just before it goes."""
        folder = _folder()
        if folder is None:
            return
        with self._lock:
            kept = folder / f"kept-{os.getpid()}-{next(self._numbers)}"
            try:
                os.link(path, kept)
            except OSError:
                line["kept"] = ""
            else:
                self._kept.append(kept)
                line["kept"] = kept.name
            self._write(folder, line)

    def _write(self, folder: Path, line: dict[str, Any]) -> None:
        with (folder / "ledger.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _folder() -> Path | None:
    """Return the ledger's folder; read at each call, because a started process gets its environment after its imports."""
    value = os.environ.get(LEDGER)
    return Path(value) if value else None


def _absolute(path: str | os.PathLike[str]) -> str:
    return str(Path(path).absolute())


def install() -> None:
    """Watch fsync, renames and removals from here on, and let the wall clock be off."""
    ledger = _Ledger()

    def fsync(descriptor: int) -> None:
        ledger.fsync(descriptor)
        ledger.note_sync(descriptor)

    def renaming(rename: Callable[..., None]) -> Callable[..., None]:
        def move(source: Any, target: Any, **folders: Any) -> None:
            if not folders:
                ledger.keep(_absolute(target), replaced=_absolute(target), source=_absolute(source))
            rename(source, target, **folders)

        return move

    def unlink(path: Any, **folders: Any) -> None:
        # shutil.rmtree passes a folder's descriptor: whole folders that come back are left out.
        if not folders and os.path.lexists(path):
            ledger.keep(_absolute(path), unlinked=_absolute(path))
        ledger.unlink(path, **folders)

    os.fsync = fsync  # type: ignore[assignment]
    os.replace, os.rename = renaming(ledger.replace), renaming(ledger.rename)
    os.unlink = os.remove = unlink
    _shift_clock()


def _shift_clock() -> None:
    wall, wall_ns = time.time, time.time_ns

    def seconds() -> float:
        return float(os.environ.get(CLOCK_OFFSET) or 0.0)

    time.time = lambda: wall() + seconds()
    time.time_ns = lambda: wall_ns() + int(seconds() * 1e9)
