"""The ledger of finished rounds on disk: a line for every change, so that a round costs the same however many came before it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from aggregator.checkpoint import write_atomically
from federation.codec import sync
from federation.errors import CheckpointError
from federation.messages import Digest

COMPACT_LINES = 256
"""The file is written anew once it holds so many lines more than four for each round: a round takes three, and one for chance."""


class KeptRound(BaseModel):
    """One finished round as the broker holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    result_digest: Digest
    num_bytes: int
    """Of all its retained payloads."""
    num_chunks: dict[str, int]
    """By transfer: `global`, `strategy`, `updates/{node}`."""
    stage: Literal["kept", "clearing", "cleared"] = "kept"
    is_suspect: bool = False
    """Found damaged on the broker: to be published again from the archive."""


class _Line(BaseModel):
    """A round as it is from now on; nothing in its place: forgotten."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    round_number: int
    kept: KeptRound | None


class LedgerFile:
    """One run's ledger; what `write` was given is on disk before it returns.

    Args:
        path: JSON lines; made at the first `write`.

    Raises:
        CheckpointError: it is damaged, other than by a last line that a crash has cut off.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._num_lines = self._num_bytes = 0
        self.rounds: dict[int, KeptRound] = self._read()
        """What the file says, in round order."""

    def write(self, changes: Mapping[int, KeptRound | None]) -> None:
        """Take in rounds that changed; None forgets one.

        Raises:
            OSError: the disk is full or fails; the file says what it said before.
        """
        if not changes:
            return
        if self._num_lines + len(changes) > COMPACT_LINES + 4 * len(self.rounds):
            remaining = {number: kept for number, kept in {**self.rounds, **changes}.items() if kept is not None}
            lines = _lines(remaining)
            write_atomically(self._path, lines, durable=True)
            self._num_lines, self._num_bytes = len(remaining), len(lines)
        else:
            self._append(_lines(changes))
            self._num_lines += len(changes)
        for number, kept in changes.items():
            if kept is None:
                self.rounds.pop(number, None)
            else:
                self.rounds[number] = kept

    def _append(self, lines: bytes) -> None:
        is_new = not self._path.exists()
        with self._path.open("ab", buffering=0) as file:
            try:
                # A write to a disk that is nearly full may take a part only.
                view = memoryview(lines)
                while view:
                    view = view[file.write(view) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(self._num_bytes)
                raise
        if is_new:
            sync(self._path.parent)
        self._num_bytes += len(lines)

    def _read(self) -> dict[int, KeptRound]:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._damaged(str(error)) from None
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            # Cut off by a crash: of a change that nothing was done about yet.
            os.truncate(self._path, len(whole))
        rounds: dict[int, KeptRound] = {}
        for text in whole.splitlines():
            try:
                line = _Line.model_validate_json(text)
            except ValidationError:
                raise self._damaged(f"line {self._num_lines + 1} is no round") from None
            if line.kept is None:
                rounds.pop(line.round_number, None)
            else:
                rounds[line.round_number] = line.kept
            self._num_lines += 1
        self._num_bytes = len(whole)
        return dict(sorted(rounds.items()))

    def _damaged(self, detail: str) -> CheckpointError:
        return CheckpointError(f"{self._path} is damaged: {detail}; delete it, and older rounds stay on the broker")


def _lines(rounds: Mapping[int, KeptRound | None]) -> bytes:
    return b"".join(_Line(round_number=number, kept=kept).model_dump_json().encode() + b"\n" for number, kept in rounds.items())
