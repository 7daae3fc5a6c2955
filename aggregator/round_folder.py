"""One round's record as a folder: what its topics hold, one file each.

{folder}/plan.json, result.json                    payloads, byte for byte as published
{folder}/global/manifest.json, tensors.safetensors      the global model at the start of the round
{folder}/strategy/manifest.json, tensors.safetensors    the strategy's state then, where the rule keeps one
{folder}/updates/{node}/manifest.json, tensors.safetensors
{folder}/acks/{node}.json                          the aggregator's last word to each node
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from federation.errors import ArchiveError

MANIFEST = "manifest.json"
TENSORS = "tensors.safetensors"

_NODE = r"[a-z0-9][a-z0-9_-]{0,62}"
_FILE_NAMES = re.compile(
    rf"plan\.json|result\.json|(global|strategy|updates/{_NODE})/(manifest\.json|tensors\.safetensors)|acks/{_NODE}\.json"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFolder:
    """The record of one round."""

    path: Path

    @property
    def plan_file(self) -> Path:
        """The plan's payload."""
        return self.path / "plan.json"

    @property
    def result_file(self) -> Path:
        """The result's payload."""
        return self.path / "result.json"

    def manifest_file(self, transfer: str) -> Path:
        """The manifest of a transfer: `global`, `strategy` or `updates/{node}`."""
        return self.path / transfer / MANIFEST

    def tensors_file(self, transfer: str) -> Path:
        """The tensors of a transfer."""
        return self.path / transfer / TENSORS

    def transfers(self) -> list[str]:
        """Return the names of the transfers that are there, in order."""
        return sorted(file.parent.relative_to(self.path).as_posix() for file in self.path.rglob(MANIFEST))

    def updates(self) -> list[str]:
        """Return the nodes whose updates are there, in node-id order."""
        return [name.removeprefix("updates/") for name in self.transfers() if name.startswith("updates/")]

    def file_names(self) -> list[str]:
        """Return the names of all files, relative to the folder, in order."""
        return sorted(file.relative_to(self.path).as_posix() for file in self.path.rglob("*") if file.is_file())

    def add_payload(self, name: str, payload: bytes) -> None:
        """Store one payload."""
        file = self.place(name)
        file.write_bytes(payload)

    def add_file(self, name: str, source: Path) -> None:
        """Store a file that must not change any more, without copying it where the disk allows."""
        file = self.place(name)
        file.unlink(missing_ok=True)
        try:
            os.link(source, file)
        except OSError:
            # A file system without hard links.
            shutil.copyfile(source, file)

    def place(self, name: str) -> Path:
        """Return where a file of this name goes, its folder made.

        Raises:
            ArchiveError: a round has no such file.
        """
        if not _FILE_NAMES.fullmatch(name):
            raise ArchiveError(f"a round's record has no file {name[:120]!r}")
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        return file


def read_payload(folder: RoundFolder, name: str, *, max_bytes: int) -> bytes:
    """Return a stored payload.

    Raises:
        ArchiveError: it is missing or too large.
    """
    try:
        with (folder.path / name).open("rb") as file:
            payload = file.read(max_bytes + 1)
    except OSError:
        raise ArchiveError(f"{name} is missing") from None
    if len(payload) > max_bytes:
        raise ArchiveError(f"{name} is larger than {max_bytes} bytes")
    return payload
