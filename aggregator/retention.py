"""Which finished rounds the broker holds, how large they are, and which have to go. Decides, and does nothing itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict

from aggregator.ledger_file import KeptRound, LedgerFile
from aggregator.round_folder import RoundFolder, read_payload
from federation import topics
from federation.chunk_format import HEADER, count_chunks
from federation.messages import MAX_MESSAGE_BYTES, Transfer, parse

NUM_CLEARED_AGAIN = 64
"""More rounds than are cleared between two snapshots of a server's broker (broker/server.conf: a minute), of a second each."""


class Retention:
    """The ledger of finished rounds on the broker; every change is on disk before it returns.

    Args:
        file: where the ledger is kept; what it holds is taken up.
        budget_bytes: finished rounds may take so many on the broker.

    Raises:
        CheckpointError: the ledger is damaged.
    """

    def __init__(self, file: Path, *, budget_bytes: int) -> None:
        self._file = LedgerFile(file)
        self._budget_bytes = budget_bytes
        self._rounds = self._file.rounds
        self._num_bytes = sum(map(_kept_bytes, self._rounds.values()))
        self._leaving = {number for number, kept in self._rounds.items() if kept.stage != "kept"}
        """Rounds that are being cleared, or were lately: few, however many are kept."""

    @property
    def num_bytes(self) -> int:
        """What the kept rounds take on the broker."""
        return self._num_bytes

    def stage_of(self, round_number: int) -> str | None:
        """Return `kept`, `clearing` or `cleared`; None for a round not known here."""
        kept = self._rounds.get(round_number)
        return kept.stage if kept else None

    def add(self, round_number: int, kept: KeptRound) -> None:
        """Take in a finished round that is on the broker and in the archive; it replaces what was known of it."""
        self._write({round_number: kept})

    def begin_clearing(self) -> None:
        """Mark the oldest rounds above the budget as to be cleared."""
        surplus = self._num_bytes - self._budget_bytes
        changes: dict[int, KeptRound | None] = {}
        for round_number, kept in self._rounds.items():
            if surplus <= 0:
                break
            if kept.stage == "kept":
                surplus -= kept.num_bytes
                changes[round_number] = self._at_stage(round_number, "clearing")
        self._write(changes)

    def clearing(self) -> list[int]:
        """Return the rounds whose clearing has begun and is not known to be complete."""
        return self._in_stage("clearing")

    def finish_clearing(self, round_number: int) -> None:
        """Note that nothing of a round is left on the broker; those cleared long before it are forgotten."""
        cleared = sorted({*self._in_stage("cleared"), round_number})
        forgotten: dict[int, KeptRound | None] = dict.fromkeys(cleared[:-NUM_CLEARED_AGAIN])
        self._write({round_number: self._at_stage(round_number, "cleared")} | forgotten)

    def clear_again(self) -> None:
        """Mark the rounds that were cleared last as to be cleared: a broker's snapshot may have brought them back."""
        self._write({number: self._at_stage(number, "clearing") for number in self._in_stage("cleared")})

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

    def _in_stage(self, stage: Literal["clearing", "cleared"]) -> list[int]:
        return sorted(number for number in self._leaving if self._rounds[number].stage == stage)

    def _at_stage(self, round_number: int, stage: Literal["clearing", "cleared"]) -> KeptRound:
        return self._rounds[round_number].model_copy(update={"stage": stage})

    def _write(self, changes: Mapping[int, KeptRound | None]) -> None:
        before = sum(_kept_bytes(self._rounds.get(number)) for number in changes)
        self._file.write(changes)
        self._num_bytes += sum(map(_kept_bytes, changes.values())) - before
        self._leaving -= changes.keys()
        self._leaving |= {number for number, kept in changes.items() if kept is not None and kept.stage != "kept"}


def _kept_bytes(kept: KeptRound | None) -> int:
    return kept.num_bytes if kept is not None and kept.stage == "kept" else 0


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
