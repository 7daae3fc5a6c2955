"""What a method and a codec keep on this node: of each run one state that counts, and perhaps one that may.

{state_dir}/{run}/node/store.json                which states there are, and of which updates; replaced atomically
{state_dir}/{run}/node/{sha256}.safetensors      a state, named by its digest

A state belongs to an update. Until the aggregator says which update of this node it has counted, the state that came of
the newest one is undecided beside the one before: a node that is killed at any step neither loses nor doubles one.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from federation.codec import FileParams, sync, write_params
from federation.errors import RemoteProtocolError
from federation.learning.codecs import flatten
from federation.learning.exchange import sets_of
from federation.learning.sets import Sets, TensorSet
from federation.messages import Digest

logger = logging.getLogger("edge_node")

FOLDER = "node"

_METHOD, _CODEC = "method.", "codec."


@dataclass(slots=True, kw_only=True)
class NodeMemory:
    """A state: what is kept, by name. Its tensors may be read from disk only when they are asked for."""

    method: dict[str, TensorSet] = field(default_factory=dict)
    codec: dict[str, TensorSet] = field(default_factory=dict)


class _State(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    round_number: int
    update_digest: Digest
    sha256: Digest


class _StoreFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    counted: _State | None = None
    undecided: _State | None = None


class NodeStore:
    """The states of one run. One thread uses it.

    Args:
        folder: the run's, on this node.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / FOLDER
        self._file = self._folder / "store.json"

    def settle(self, counted_digest: str | None, *, round_number: int) -> None:
        """Decide on the undecided state.

        Args:
            counted_digest: of the newest update of this node that the aggregator has counted; None for none.
            round_number: of the plan that says so: an update of that round can't have been decided on yet.
        """
        stored = self._read()
        undecided = stored.undecided
        if undecided is None:
            return
        if undecided.update_digest == counted_digest:
            self._write(_StoreFile(counted=undecided))
        elif undecided.round_number < round_number:
            logger.info("round=%d state=reverted: that round's update did not count", undecided.round_number)
            self._write(_StoreFile(counted=stored.counted))

    def counted(self) -> NodeMemory:
        """Return the state that counts, from which the next update is trained; empty where there is none."""
        return self._load(self._read().counted)

    def newest(self) -> NodeMemory:
        """Return the state that came of the newest update, whether it counts or not."""
        stored = self._read()
        return self._load(stored.undecided or stored.counted)

    def stage(self, memory: NodeMemory, *, round_number: int, update_digest: str) -> None:
        """Store the state that came of an update, durably and undecided. Without anything kept, nothing is stored."""
        sets = {_METHOD + name: tensors for name, tensors in memory.method.items()}
        sets |= {_CODEC + name: tensors for name, tensors in memory.codec.items()}
        if not sets:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        tensors = flatten(Sets(sets))
        fresh = self._folder / "next.safetensors"
        sha256 = write_params(fresh, tensors, signature=tensors.signature)
        fresh.replace(self._path(sha256))
        state = _State(round_number=round_number, update_digest=update_digest, sha256=sha256)
        self._write(_StoreFile(counted=self._read().counted, undecided=state))

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.safetensors"

    def _read(self) -> _StoreFile:
        try:
            return _StoreFile.model_validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return _StoreFile()
        except ValidationError:
            logger.warning("file=%s damaged: what the method kept on this node is lost, it begins anew", self._file)
            return _StoreFile()

    def _write(self, stored: _StoreFile) -> None:
        fresh = self._file.with_suffix(".json.new")
        with fresh.open("wb") as file:
            file.write(stored.model_dump_json().encode())
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._file)
        sync(self._folder)
        kept = {self._path(state.sha256) for state in (stored.counted, stored.undecided) if state is not None}
        for path in self._folder.glob("*.safetensors"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def _load(self, state: _State | None) -> NodeMemory:
        if state is None:
            return NodeMemory()
        try:
            tensors = FileParams(self._path(state.sha256))
            sets = sets_of(tensors, tensors.signature)
        except (OSError, RemoteProtocolError) as error:
            logger.warning("what the method kept on this node can't be read, it begins anew: %s", error)
            return NodeMemory()
        return NodeMemory(
            method={name.removeprefix(_METHOD): tensors for name, tensors in sets.items() if name.startswith(_METHOD)},
            codec={name.removeprefix(_CODEC): tensors for name, tensors in sets.items() if name.startswith(_CODEC)},
        )
