"""What a node keeps on disk for the round it follows, so that a restart repeats nothing.

{state_dir}/{run}/{round}/global.part           the global model on its way in
{state_dir}/{run}/{round}/global.safetensors    ... whole and verified
{state_dir}/{run}/{round}/update.safetensors    the trained update
{state_dir}/{run}/{round}/update.json           its manifest's facts; written last, so its presence means "whole"
{state_dir}/{run}/node/                         what the method keeps from round to round (edge_node/node_store.py)
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from edge_node.node_store import FOLDER as NODE_FOLDER
from edge_node.node_store import NodeMemory, NodeStore
from federation.codec import file_digest, write_params
from federation.errors import DataError
from federation.messages import Digest, LocalMetrics
from federation.params import Params

KEPT_FREE_BYTES = 64 << 20
"""A round is sat out rather than let a disk run full: what a log line or a package update needs to work."""


class UpdateFacts(BaseModel):
    """What a stored update is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_digest: Digest
    sha256: Digest
    num_examples: int
    metrics: LocalMetrics


class Spool:
    """A node's folder of one run."""

    def __init__(self, state_dir: Path, run: str) -> None:
        self._folder = state_dir / run
        self.node_store = NodeStore(self._folder)
        """What the method keeps from round to round."""

    def enter(self, round_number: int) -> Path:
        """Make a round's folder, forget all others but the update of the round before, and return it.

        That round may still be open when this process is started again: its update is then offered as it was, and not trained
        again with other measured times, which would contradict the round's result.
        """
        folder = self._folder / str(round_number)
        folder.mkdir(parents=True, exist_ok=True)
        for other in self._folder.iterdir():
            if other.name == str(round_number - 1):
                self.forget_global(round_number - 1)
            elif other != folder and other.name != NODE_FOLDER:
                shutil.rmtree(other, ignore_errors=True)
        return folder

    def check_space(self, needed_bytes: int) -> None:
        """Raise unless the disk has room for a round.

        Raises:
            DataError: says how much is missing.
        """
        free_bytes = shutil.disk_usage(self._folder).free
        if free_bytes < needed_bytes + KEPT_FREE_BYTES:
            missing = needed_bytes + KEPT_FREE_BYTES - free_bytes
            raise DataError(f"disk full: {missing} bytes more must be free under {self._folder}")

    def global_path(self, round_number: int) -> Path:
        """Return where the round's verified global model is, or will be."""
        return self._folder / str(round_number) / "global.safetensors"

    def forget_global(self, round_number: int) -> None:
        """Delete the round's global model."""
        self.global_path(round_number).unlink(missing_ok=True)

    def forget_update(self, round_number: int) -> None:
        """Delete the round's update.

        Raises:
            OSError: the disk is read-only or fails.
        """
        self.update_path(round_number).with_suffix(".json").unlink(missing_ok=True)

    def update_path(self, round_number: int) -> Path:
        """Return where the round's update is, or will be."""
        return self._folder / str(round_number) / "update.safetensors"

    def stored_global(self, round_number: int) -> str | None:
        """Return the digest of the round's whole global model, or None."""
        path = self.global_path(round_number)
        return file_digest(path) if path.exists() else None

    def stored_update(self, round_number: int) -> UpdateFacts | None:
        """Return the facts of the round's whole update, or None where there is none.

        The file itself is not read: whoever sends it compares its digest with the facts'.
        """
        path = self.update_path(round_number)
        try:
            facts = UpdateFacts.model_validate_json(path.with_suffix(".json").read_bytes())
        except (OSError, ValidationError):
            return None
        return facts if path.exists() else None

    def store_update(
        self, round_number: int, params: Params, *, base_digest: str, num_examples: int, metrics: LocalMetrics, memory: NodeMemory
    ) -> None:
        """Store a trained update, and beside it, undecided, what the method keeps if it counts.

        Not forced to the disk: after a power cut a damaged one is noticed by its digest and trained again,
        to the same bytes.
        """
        path = self.update_path(round_number)
        sha256 = write_params(path, params, durable=False)
        self.node_store.stage(memory, round_number=round_number, update_digest=sha256)
        facts = UpdateFacts(base_digest=base_digest, sha256=sha256, num_examples=num_examples, metrics=metrics)
        fresh = path.with_suffix(".json.new")
        fresh.write_text(facts.model_dump_json(), encoding="utf-8")
        fresh.replace(path.with_suffix(".json"))
