"""Collects the open round's updates: bytes from nodes in, verified files and events out."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from aggregator.events import UpdateCompleted, UpdateOffered, UpdateRefused
from federation.chunks import Assembly, parse_chunk
from federation.codec import FileParams, layout_of
from federation.errors import RejectReason, RemoteProtocolError
from federation.learning.algorithms import Update
from federation.learning.exchange import Exchange
from federation.learning.sets import Sets
from federation.messages import UpdateManifest, parse
from federation.params import check_finite
from federation.signing import TrustedKeys


@dataclass(slots=True, kw_only=True)
class _Upload:
    """One node's update on its way in."""

    assembly: Assembly
    manifest: UpdateManifest | None = None
    manifest_payload: bytes = b""
    path: Path | None = None


class UpdateCollector:
    """The updates of one round, each in a file of its own; memory holds no tensor.

    Args:
        folder: where the files go; emptied at every round.
        run: the run's name.
        exchange: what every update must be, and how it is decoded.
        trusted_keys: by which every manifest must be signed; None takes unsigned ones.
    """

    def __init__(self, *, folder: Path, run: str, exchange: Exchange, trusted_keys: TrustedKeys | None = None) -> None:
        self._folder = folder
        self._run = run
        self._exchange = exchange
        self._trusted_keys = trusted_keys
        self._total_bytes = layout_of(exchange.update_signature).total_bytes
        self._round_number = 0
        self._base_digest = ""
        self._uploads: dict[str, _Upload] = {}

    def open(self, round_number: int, base_digest: str) -> None:
        """Begin a round whose updates are trained from the global model `base_digest`."""
        self.close()
        self._round_number = round_number
        self._base_digest = base_digest
        self._folder.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        """Forget the round's updates."""
        for upload in self._uploads.values():
            upload.assembly.discard()
        self._uploads.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add_chunk(self, node: str, index: int, payload: bytes) -> list[UpdateCompleted | UpdateRefused]:
        """Store one chunk, which came under the topic of chunk `index`.

        Raises:
            RemoteProtocolError: the payload is no chunk of a transfer of this size; nothing is stored.
        """
        upload = self._upload(node)
        upload.assembly.add_chunk(parse_chunk(payload, index))
        return self._complete(node, upload)

    def add_manifest(self, node: str, payload: bytes) -> list[UpdateOffered | UpdateCompleted | UpdateRefused]:
        """Take in the commit mark of an update; refuse one that contradicts the round or the model."""
        manifest: UpdateManifest | None = None
        try:
            manifest = parse(UpdateManifest, payload)
            self._check_manifest(node, manifest)
            upload = self._upload(node)
            upload.assembly.set_manifest(manifest)
        except RemoteProtocolError as error:
            return [self._refused(node, manifest.sha256 if manifest else None, error)]
        upload.manifest = manifest
        if upload.path is None:
            upload.manifest_payload = payload
        completed = self._complete(node, upload)
        if completed:
            return [*completed]
        return [UpdateOffered(round_number=self._round_number, node=node, sha256=manifest.sha256)]

    def describe(self, node: str, round_number: int, payload: bytes) -> UpdateOffered:
        """Return a manifest that is not collected any more, as an offer to be answered by its digest.

        Raises:
            RemoteProtocolError: the payload is no manifest of this node and round.
        """
        manifest = parse(UpdateManifest, payload)
        if manifest.node != node or manifest.round_number != round_number:
            raise RemoteProtocolError("manifest of another node or round", reason=RejectReason.INVALID_MANIFEST)
        accepted = self._uploads.get(node) if round_number == self._round_number else None
        is_reworded = accepted is not None and accepted.path is not None and accepted.manifest_payload != payload
        return UpdateOffered(round_number=round_number, node=node, sha256=manifest.sha256, is_reworded=is_reworded)

    def missing(self, node: str) -> tuple[str | None, list[int]]:
        """Return the digest of a node's offered update and the chunk indices it lacks."""
        upload = self._uploads.get(node)
        if upload is None or upload.manifest is None:
            return None, []
        return upload.manifest.sha256, upload.assembly.missing()

    def stored(self, node: str, down: Sets) -> Update:
        """Return a completed update, its tensors read from disk and decoded on access.

        Args:
            node: whose.
            down: the sets it was trained from.
        """
        upload = self._uploads[node]
        if upload.manifest is None or upload.path is None:
            raise KeyError(node)
        tensors = FileParams(upload.path, self._exchange.update_signature)
        return Update(node=node, num_examples=upload.manifest.num_examples, sets=self._exchange.decode(tensors, down))

    def record(self, node: str) -> tuple[bytes, Path]:
        """Return a completed update's manifest, byte for byte as it came, and its file."""
        upload = self._uploads[node]
        if upload.path is None:
            raise KeyError(node)
        return upload.manifest_payload, upload.path

    def _upload(self, node: str) -> _Upload:
        upload = self._uploads.get(node)
        if upload is None:
            assembly = Assembly(self._folder / f"{node}.part", expected_bytes=self._total_bytes, max_bytes=self._total_bytes)
            upload = self._uploads[node] = _Upload(assembly=assembly)
        return upload

    def _check_manifest(self, node: str, manifest: UpdateManifest) -> None:
        if manifest.node != node or manifest.run != self._run:
            raise RemoteProtocolError("manifest of another node or run", reason=RejectReason.INVALID_MANIFEST)
        if manifest.round_number != self._round_number:
            raise RemoteProtocolError(f"manifest of round {manifest.round_number}", reason=RejectReason.FOREIGN_ROUND)
        if manifest.base_digest != self._base_digest:
            raise RemoteProtocolError("trained from another global model than this round's", reason=RejectReason.FOREIGN_BASE)
        if self._trusted_keys is not None:
            self._trusted_keys.check(manifest)

    def _complete(self, node: str, upload: _Upload) -> list[UpdateCompleted | UpdateRefused]:
        """Verify an update once its last byte is there."""
        if upload.path is not None or upload.manifest is None or not upload.assembly.is_complete:
            return []
        manifest = upload.manifest
        try:
            path = upload.assembly.finish()
            for tensors in self._exchange.decode(FileParams(path, self._exchange.update_signature), None).values():
                check_finite(tensors)
        except RemoteProtocolError as error:
            upload.assembly.discard()
            del self._uploads[node]
            return [self._refused(node, manifest.sha256, error)]
        upload.path = path
        completed = UpdateCompleted(
            round_number=self._round_number,
            node=node,
            sha256=manifest.sha256,
            num_examples=manifest.num_examples,
            metrics=manifest.metrics,
        )
        return [completed]

    def _refused(self, node: str, sha256: str | None, error: RemoteProtocolError) -> UpdateRefused:
        return UpdateRefused(round_number=self._round_number, node=node, sha256=sha256, reason=error.reason, detail=str(error))
