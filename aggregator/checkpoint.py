"""What the aggregator keeps on disk: its position, the method's sets.

{state_dir}/{run}/checkpoint.json           position and the settings it belongs to; replaced atomically
{state_dir}/{run}/globals/{digest}.safetensors        the sets that nodes are sent, and those that stay here, named by their digests
{state_dir}/{run}/updates/{instance}/       updates of the open round, of one process
{state_dir}/{run}/finished/, retained.jsonl  finished rounds (aggregator/round_keeper.py)
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from aggregator.events import Position
from federation.codec import FileParams, file_digest, sync, write_params
from federation.errors import CheckpointError
from federation.learning.codecs import flatten
from federation.learning.exchange import sets_of
from federation.learning.sets import Sets
from federation.params import FiniteParams, Params, Signature
from federation.settings import RunSettings


class _CheckpointFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    settings: dict[str, Any]
    position: dict[str, Any]
    saved_at_ns: int = 0
    """Nanoseconds since 1970; 0 where nothing counts from then."""


class CheckpointStore:
    """The aggregator's folder of one run."""

    def __init__(self, state_dir: Path, settings: RunSettings) -> None:
        self._settings = settings
        self.folder = state_dir / settings.run
        self._file = self.folder / "checkpoint.json"
        self._globals = self.folder / "globals"
        try:
            self._make_folders()
        except OSError as error:
            raise CheckpointError(f"{self.folder} can't be written: {error}") from None

    def open_updates_folder(self, instance: str) -> Path:
        """Return the folder for this process's updates of the open round; those of earlier processes are deleted."""
        parent = self.folder / "updates"
        shutil.rmtree(parent, ignore_errors=True)
        return parent / instance

    def leading_epoch(self) -> int:
        """Return the epoch of the process that saved last; 0 where nothing is saved or it can't be read."""
        try:
            return int(_CheckpointFile.model_validate_json(self._file.read_bytes()).position["epoch"])
        except (OSError, ValidationError, KeyError, TypeError, ValueError):
            return 0

    def load(self, *, now_ns: int = 0) -> Position | None:
        """Return the stored position, or None where there is none.

        Args:
            now_ns: the clock, nanoseconds since 1970: an open round has been open for longer since.

        Raises:
            CheckpointError: it is damaged, its model is missing or damaged, or it belongs to other settings.
        """
        if not self._file.exists():
            return None
        try:
            stored = _CheckpointFile.model_validate_json(self._file.read_bytes())
            position = TypeAdapter(Position).validate_python(stored.position)
        except (ValidationError, OSError) as error:
            raise CheckpointError(f"{self._file} is damaged: {error}") from None
        changed = sorted(name for name, value in _identity(self._settings).items() if stored.settings.get(name) != value)
        if changed:
            raise CheckpointError(
                f"{self._file} belongs to other settings ({', '.join(changed)} differ): "
                "give this run another name, or put the settings back"
            )
        for digest in (position.global_digest, position.state_digest):
            path = self.global_path(digest or position.global_digest)
            if digest and not (path.exists() and file_digest(path) == digest):
                raise CheckpointError(f"{path} is missing or damaged: rebuild it with `fedmq recover {self._settings.run}`")
        if position.cohort and 0 < stored.saved_at_ns < now_ns:
            return replace(position, elapsed_seconds=position.elapsed_seconds + (now_ns - stored.saved_at_ns) / 1e9)
        return position

    def save(self, position: Position, *, now_ns: int = 0) -> None:
        """Store the position durably, then forget the models and states it no longer needs."""
        stored = _CheckpointFile(settings=_identity(self._settings), position=asdict(position), saved_at_ns=now_ns)
        write_atomically(self._file, stored.model_dump_json().encode(), durable=True)
        kept = {self.global_path(digest).name for digest in (position.global_digest, position.state_digest) if digest}
        for path in self._globals.iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Forget the run's checkpoint and models, for a fresh start."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._make_folders()

    def _make_folders(self) -> None:
        if not self._globals.exists():
            self._globals.mkdir(parents=True, exist_ok=True)
            sync(self.folder)
            sync(self.folder.parent)

    def global_path(self, digest: str) -> Path:
        """Return where the sets of this digest are, or will be: those that nodes are sent, or those that stay here."""
        return self._globals / f"{digest}.safetensors"

    def read_sets(self, *digests: str | None) -> Sets:
        """Return the sets of these digests, their tensors read from disk on access.

        Raises:
            CodecError: a file is not what was stored.
            OSError: it can't be read.
        """
        files = [FileParams(self.global_path(digest)) for digest in digests if digest is not None]
        return Sets({name: tensors for file in files for name, tensors in sets_of(file, file.signature).items()})

    def write_sets(self, sets: Sets, down: Collection[str]) -> tuple[str, str | None]:
        """Store sets durably: those that nodes are sent in one file, the others in another.

        Returns:
            Their digests; None in the second place where there are no others.

        Raises:
            CodecError: a tensor holds NaN or infinity.
        """
        others = [name for name in sets if name not in down]
        sent, kept = flatten(sets.only(down)), flatten(sets.only(others))
        digest = self.write(FiniteParams(sent), sent.signature)
        return digest, self.write(FiniteParams(kept), kept.signature) if others else None

    def write(self, params: Params, signature: Signature | None = None) -> str:
        """Store tensors durably; return their digest."""
        fresh = self._globals / f"next-{secrets.token_hex(4)}.safetensors"
        digest = write_params(fresh, params, signature=signature)
        fresh.replace(self.global_path(digest))
        sync(self._globals)
        return digest


def write_atomically(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Replace a file's content in one step; `durable` also waits for the disk, which then has content and name."""
    # A name of its own: a zombie that shares this disk may be writing the same file.
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        with fresh.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        fresh.replace(path)
        if durable:
            sync(path.parent)
    finally:
        fresh.unlink(missing_ok=True)


def _identity(settings: RunSettings) -> dict[str, Any]:
    """Return what must not change when a run is continued: all but its length, the rounds' timing and the protection."""
    return settings.model_dump(
        mode="json", exclude={"num_rounds": True, "rounds": True, "protection": True, "training": {"device", "num_threads"}}
    )
