"""What a power cut leaves of a killed process's files: whatever was not synced may be short, empty, zeroed, or as it was before.

The model is a file system with an ordered journal and delayed allocation (ext4 in its default mode): of the renames and removals
since the last fsync the first few have happened and the rest have not; a file's bytes are safe once that file was synced, and
until then its length may be known and its content not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

LEDGER_NAME = "ledger.jsonl"
WHOLE_SHARE = 0.3
"""Of unsynced files that are whole all the same: the disk had got round to them."""


def cut_power(folders: Iterable[Path], ledger: Path, random: Random) -> list[str]:
    """Take from the files of a process that was killed what it had not synced.

    Args:
        folders: everything it writes.
        ledger: what it wrote down (tests/faults/instrument).
        random: chooses.

    Returns:
        What was done, a sentence each.
    """
    lines = _read(ledger / LEDGER_NAME)
    synced = {line["synced"]: (line["size"], line["mtime_ns"]) for line in lines if line.get("synced")}
    last_sync = max((index for index, line in enumerate(lines) if "synced" in line), default=-1)
    done = _undo(lines[last_sync + 1 :], ledger, random)
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.is_symlink():
                done += _tear(path, synced, random)
    for line in _files(ledger):
        line.unlink()
    _note_survivors(folders, ledger)
    return done


def _note_survivors(folders: Iterable[Path], ledger: Path) -> None:
    """Begin the next life's ledger with what the process finds on its disk: that has survived, and no later cut takes it."""
    ledger.mkdir(parents=True, exist_ok=True)
    with (ledger / LEDGER_NAME).open("w", encoding="utf-8") as file:
        for folder in folders:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not path.is_symlink():
                    facts = path.stat()
                    line = {"synced": facts.st_ino, "size": facts.st_size, "mtime_ns": facts.st_mtime_ns}
                    file.write(json.dumps(line) + "\n")


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    # The last may be half a line: the process was killed.
    return [json.loads(line) for line in lines if line.endswith("}")]


def _undo(moves: list[dict[str, Any]], ledger: Path, random: Random) -> list[str]:
    done = []
    for move in reversed(moves[random.randint(0, len(moves)) :]):
        kept = ledger / move["kept"] if move["kept"] else None
        target = Path(move.get("replaced") or move["unlinked"])
        if not target.parent.is_dir():
            continue
        if "replaced" in move and target.is_file():
            source = Path(move["source"])
            if source.parent.is_dir():
                target.replace(source)
        if kept is not None and kept.exists():
            kept.replace(target)
        done.append(f"{target.name} is as it was before")
    return done


def _tear(path: Path, synced: dict[int, tuple[int, int]], random: Random) -> list[str]:
    facts = path.stat()
    size, mtime_ns = synced.get(facts.st_ino, (0, 0))
    if (facts.st_size, facts.st_mtime_ns) == (size, mtime_ns) or facts.st_size == 0 or random.random() < WHOLE_SHARE:
        return []
    # What was synced of a file that has grown since stays.
    safe_bytes = min(size, facts.st_size)
    match random.choice(["empty", "short", "zeroed"]):
        case "empty":
            os.truncate(path, safe_bytes)
        case "short":
            os.truncate(path, random.randint(safe_bytes, facts.st_size))
        case _:
            start = random.randint(safe_bytes, facts.st_size)
            with path.open("r+b") as file:
                file.seek(start)
                file.write(bytes(facts.st_size - start))
    return [f"{path.parent.name}/{path.name} is torn"]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
