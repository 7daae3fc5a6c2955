"""Which finished rounds the broker holds, how large they are, and which have to go. Decides, and does nothing itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from aggregator.checkpoint import write_atomically
from aggregator.round_folder import RoundFolder, read_payload
from federation import topics
from federation.chunk_format import HEADER, count_chunks
from federation.errors import CheckpointError
from federation.messages import MAX_MESSAGE_BYTES, Digest, Transfer, parse

NUM_CLEARED_AGAIN = 64
"""More rounds than are cleared between two snapshots of a server's broker (broker/server.conf: a minute), of a second each."""


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


class _LedgerFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    rounds: dict[int, KeptRound]


class Retention:
    """The ledger of finished rounds on the broker; every change is on disk before it returns.

    Args:
        file: where the ledger is kept; what it holds is taken up.
        budget_bytes: finished rounds may take so many on the broker.

    Raises:
        CheckpointError: the ledger is damaged.
    """

    def __init__(self, file: Path, *, budget_bytes: int) -> None:
        self._file = file
        self._budget_bytes = budget_bytes
        self._rounds: dict[int, KeptRound] = {}
        if file.exists():
            try:
                self._rounds = dict(_LedgerFile.model_validate_json(file.read_bytes()).rounds)
            except (ValidationError, OSError) as error:
                raise CheckpointError(f"{file} is damaged: {error}; delete it, and older rounds stay on the broker") from None

    @property
    def num_bytes(self) -> int:
        """What the kept rounds take on the broker."""
        return sum(kept.num_bytes for kept in self._rounds.values() if kept.stage == "kept")

    def stage_of(self, round_number: int) -> str | None:
        """Return `kept`, `clearing` or `cleared`; None for a round not known here."""
        kept = self._rounds.get(round_number)
        return kept.stage if kept else None

    def add(self, round_number: int, kept: KeptRound) -> None:
        """Take in a finished round that is on the broker and in the archive; it replaces what was known of it."""
        self._rounds[round_number] = kept
        self._save()

    def begin_clearing(self) -> None:
        """Mark the oldest rounds above the budget as to be cleared."""
        is_changed = False
        for round_number in sorted(self._rounds):
            if self.num_bytes <= self._budget_bytes:
                break
            if self._rounds[round_number].stage == "kept":
                self._set_stage(round_number, "clearing")
                is_changed = True
        if is_changed:
            self._save()

    def clearing(self) -> list[int]:
        """Return the rounds whose clearing has begun and is not known to be complete."""
        return sorted(number for number, kept in self._rounds.items() if kept.stage == "clearing")

    def finish_clearing(self, round_number: int) -> None:
        """Note that nothing of a round is left on the broker."""
        self._set_stage(round_number, "cleared")
        self._save()

    def clear_again(self) -> None:
        """Mark the rounds that were cleared last as to be cleared: a broker's snapshot may have brought them back."""
        cleared = sorted(number for number, kept in self._rounds.items() if kept.stage == "cleared")
        for round_number in cleared[-NUM_CLEARED_AGAIN:]:
            self._set_stage(round_number, "clearing")
        if cleared:
            self._save()

    def missing(self, result_digests: dict[int, str], *, before_round: int) -> list[int]:
        """Return the rounds that should be on the broker and are not there as they were published.

        Args:
            result_digests: SHA-256 of each result that is there, by round.
            before_round: the open round, which is not looked at.
        """
        return sorted(
            number
            for number, kept in self._rounds.items()
            if number < before_round and kept.stage == "kept" and (kept.is_suspect or result_digests.get(number) != kept.result_digest)
        )

    def note_restored(self, round_number: int) -> None:
        """Note that a round has been published again."""
        if (kept := self._rounds.get(round_number)) is not None and kept.is_suspect:
            self.add(round_number, kept.model_copy(update={"is_suspect": False}))

    def topics_of(self, run: str, round_number: int) -> Iterator[str]:
        """Yield every retained topic of a round: commit marks first, so that no reader takes a half for a whole."""
        kept = self._rounds[round_number]
        yield str(topics.ResultTopic(run, round_number))
        for transfer in kept.num_chunks:
            yield str(manifest_topic(run, round_number, transfer))
        for transfer, num_chunks in kept.num_chunks.items():
            for index in range(num_chunks):
                yield str(chunk_topic(run, round_number, transfer, index))
        yield str(topics.PlanTopic(run, round_number))

    def _set_stage(self, round_number: int, stage: Literal["clearing", "cleared"]) -> None:
        self._rounds[round_number] = self._rounds[round_number].model_copy(update={"stage": stage})

    def _save(self) -> None:
        write_atomically(self._file, _LedgerFile(rounds=self._rounds).model_dump_json().encode(), durable=True)


def measure(folder: RoundFolder, result_digest: str) -> KeptRound:
    """Return a round's size on the broker, worked out from its record."""
    num_bytes = folder.plan_file.stat().st_size + folder.result_file.stat().st_size
    num_chunks = {}
    for transfer in folder.transfers():
        payload = read_payload(folder, f"{transfer}/manifest.json", max_bytes=MAX_MESSAGE_BYTES)
        manifest = parse(AnyTransfer, payload)
        num_chunks[transfer] = count_chunks(manifest.total_bytes, manifest.chunk_bytes)
        num_bytes += len(payload) + manifest.total_bytes + num_chunks[transfer] * HEADER.size
    return KeptRound(result_digest=result_digest, num_bytes=num_bytes, num_chunks=num_chunks)


def manifest_topic(run: str, round_number: int, transfer: str) -> topics.Topic:
    """Return the topic of a transfer's manifest; `transfer` as in `RoundFolder`."""
    if transfer == "global":
        return topics.GlobalManifestTopic(run, round_number)
    if transfer == "strategy":
        return topics.StrategyManifestTopic(run, round_number)
    return topics.UpdateManifestTopic(run, round_number, transfer.removeprefix("updates/"))


def chunk_topic(run: str, round_number: int, transfer: str, index: int) -> topics.Topic:
    """Return the topic of one chunk of a transfer."""
    if transfer == "global":
        return topics.GlobalChunkTopic(run, round_number, index)
    if transfer == "strategy":
        return topics.StrategyChunkTopic(run, round_number, index)
    return topics.UpdateChunkTopic(run, round_number, transfer.removeprefix("updates/"), index)


class AnyTransfer(Transfer):
    """A manifest of either kind, of which only the sizes matter here."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
