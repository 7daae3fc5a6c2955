"""Keeps finished rounds: on the broker within a budget, on disk for good.

    stage (links, at the result) --> archive (another thread) --> clear what is above the budget
    check (after a broker's crash) --> publish again what it lost

{state_dir}/{run}/finished/           staged, until archived (aggregator/staging.py)
{state_dir}/{run}/retained.jsonl       what the broker holds
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock

from aggregator.archive import Archive
from aggregator.ledger_file import KeptRound
from aggregator.retention import Retention, chunk_topic, manifest_topic, measure
from aggregator.round_folder import RoundFolder, read_payload
from aggregator.staging import Staging
from federation import topics
from federation.chunks import ChunkedFile
from federation.codec import file_digest
from federation.errors import ArchiveError, FedMQError, RemoteProtocolError
from federation.messages import MAX_MESSAGE_BYTES, GlobalManifest, RoundResult, UpdateManifest, parse
from federation.transport import Transport

logger = logging.getLogger("aggregator")


@dataclass(frozen=True, slots=True)
class RoundsArchived:
    """Rounds are safe on disk; `RoundKeeper.take_archived` says which."""


class RoundKeeper:
    """The finished rounds of one run.

    Args:
        run: the run's name.
        folder: the aggregator's folder of the run.
        archive: where bundles go.
        transport: clears and restores.
        budget_bytes: what finished rounds may take on the broker.
        num_finished: rounds that are over; what was staged of later ones is void, for they will be led again.
    """

    def __init__(
        self,
        *,
        run: str,
        folder: Path,
        archive: Archive,
        transport: Transport,
        budget_bytes: int,
        num_finished: int,
    ) -> None:
        self._run = run
        self._staging = Staging(folder / "finished")
        self._restoring = folder / "restoring"
        self._archive = archive
        self.spoken: Callable[[str, bytes], None] = lambda _topic, _payload: None
        """Told of everything that is published again."""
        self._transport = transport
        self._retention = Retention(folder / "retained.jsonl", budget_bytes=budget_bytes)
        self._lock = Lock()
        self._archived: dict[int, KeptRound] = {}
        self._result_digests: dict[int, str] | None = None
        self._broken: set[int] = set()
        self._unsettled: set[int] = set()
        self._cleared: set[int] = set()
        self._swept: set[int] = set()
        shutil.rmtree(self._restoring, ignore_errors=True)
        for staged in self._staging.numbers():
            if staged > num_finished:
                self._staging.remove(staged)

    def stage(self, round_number: int, payloads: Mapping[str, bytes], files: Mapping[str, Path], *, are_synced: bool) -> None:
        """Set a finished round's record aside, before anything of it is deleted or overwritten.

        It is on the disk before the run's position says that the round is over: the broker may lose its last seconds in the same power cut.

        Args:
            round_number: the round.
            payloads: by name in the round's folder, `result.json` among them.
            files: likewise; they must not change any more.
            are_synced: the files' bytes are on the disk already.
        """
        self._unsettled.add(round_number)
        self._staging.add(round_number, payloads, files, are_synced=are_synced)

    def archive_staged(self) -> RoundsArchived:
        """Write every staged round's bundle; on any thread. What the disk has no room for stays staged."""
        with self._lock:
            for round_number in self._staging.numbers():
                if round_number in self._archived:
                    continue
                try:
                    with self._staging.opened(round_number) as folder:
                        _verify(folder)
                        kept = measure(folder, hashlib.sha256(folder.result_file.read_bytes()).hexdigest())
                        num_bytes = self._archive.write(round_number, folder)
                except (OSError, FedMQError) as error:
                    logger.error("round=%d archive=failed reason=%r; it stays on the broker", round_number, str(error))  # noqa: TRY400
                    continue
                logger.info("round=%d archived_bytes=%d retained_bytes=%d", round_number, num_bytes, kept.num_bytes)
                self._archived[round_number] = kept
        return RoundsArchived()

    def take_archived(self) -> None:
        """Note archived rounds, restore those a broker lost while they were open, and clear the oldest above the budget."""
        with self._lock:
            archived, self._archived = self._archived, {}
            for round_number, kept in archived.items():
                # In this order: a crash in between archives the round once more, and nothing forgets that the broker holds it.
                self._retention.add(round_number, kept)
                self._staging.remove(round_number)
        for round_number in sorted(self._broken & archived.keys()):
            self._broken.discard(round_number)
            self._restore(round_number)
        self._retention.begin_clearing()
        self._go_on_clearing()

    def take_leftover(self, topic: str, payload: bytes) -> bool:
        """Clear what a node left in a round that is being cleared; True when the message was that."""
        for round_number in self._swept:
            if topic.startswith(topics.round_filter(self._run, round_number).removesuffix("#")):
                if payload:
                    self._transport.publish(topic, b"", retain=True)
                return True
        return False

    def finished_result(self, round_number: int) -> RoundResult | None:
        """Return what became of a finished round, as it was published; None, logged, where that is not on this disk."""
        try:
            payload = self._staging.payload(round_number, "result.json") or self._archive.read_payload(round_number, "result.json")
            return parse(RoundResult, payload)
        except (ArchiveError, RemoteProtocolError) as error:
            logger.warning("round=%d result=unreadable reason=%r", round_number, str(error))
            return None

    # --- a broker that forgot -------------------------------------------------------------------

    def settle(self) -> None:
        """Note that the broker has acknowledged all that was published."""
        self._unsettled.clear()

    def begin_check(self, suspects: Iterable[int] = ()) -> None:
        """Ask the broker for the results it holds; suspects are restored in any case, the open round when it is over."""
        # Of what was on its way when the broker died it may hold the end without the beginning.
        self._broken |= self._unsettled.union(suspects)
        # What was cleared may be back, from an older snapshot.
        self._cleared.clear()
        self._swept.clear()
        self._retention.clear_again()
        self._result_digests = {}
        # Followed already; asking again brings what is retained.
        self._transport.subscribe([topics.result_filter(self._run)])

    def take_result(self, round_number: int, payload: bytes) -> None:
        """Note a result that the broker holds."""
        if self._result_digests is not None:
            self._result_digests[round_number] = hashlib.sha256(payload).hexdigest()

    def finish_check(self, *, before_round: int) -> None:
        """Publish again, from the archive, the rounds before the open one that are not there as they were."""
        if self._result_digests is None:
            return
        missing = {*self._retention.missing(self._result_digests, before_round=before_round)}
        broken = {number for number in self._broken if number < before_round and self._retention.stage_of(number) == "kept"}
        self._broken -= broken
        self._result_digests = None
        for round_number in sorted(missing | broken):
            self._restore(round_number)
        self._go_on_clearing()

    def _restore(self, round_number: int) -> None:
        """Publish a round from the archive: chunks, manifests, plan, and its result last."""
        path = self._restoring / str(round_number)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        try:
            folder = self._archive.extract(round_number, path)
            num_chunks = sum(self._publish_transfer(round_number, folder, transfer) for transfer in folder.transfers())
        except (OSError, FedMQError) as error:
            logger.error("round=%d restore=failed reason=%r", round_number, str(error))  # noqa: TRY400 - a sentence, not a bug
            return
        self._publish(topics.PlanTopic(self._run, round_number), folder.plan_file.read_bytes())
        self._publish(topics.ResultTopic(self._run, round_number), folder.result_file.read_bytes())
        self._unsettled.add(round_number)
        self._retention.note_restored(round_number)
        logger.warning("round=%d restored chunks=%d: the broker had lost it", round_number, num_chunks)

    def _publish_transfer(self, round_number: int, folder: RoundFolder, transfer: str) -> int:
        payload = folder.manifest_file(transfer).read_bytes()
        manifest = parse(UpdateManifest if transfer.startswith("updates/") else GlobalManifest, payload[:MAX_MESSAGE_BYTES])
        source = ChunkedFile(folder.tensors_file(transfer), manifest.chunk_bytes)
        if source.sha256 != manifest.sha256:
            raise ArchiveError(f"{transfer}/tensors.safetensors is not what its manifest says")
        for index in range(source.num_chunks):
            self._transport.publish(str(chunk_topic(self._run, round_number, transfer, index)), partial(source.payload, index), retain=True)
        self._publish(manifest_topic(self._run, round_number, transfer), payload)
        return source.num_chunks

    def _go_on_clearing(self) -> None:
        """Clear in three steps: the topics we know of; then whatever else is found there; then it is done."""
        is_quiet = not self._transport.num_pending
        for round_number in self._retention.clearing():
            if round_number not in self._cleared:
                self._clear(round_number)
            elif is_quiet and round_number not in self._swept:
                # Only now, or the broker would send us the whole round once more.
                self._swept.add(round_number)
                self._transport.subscribe([topics.round_filter(self._run, round_number)])
            elif is_quiet:
                self._swept.discard(round_number)
                self._transport.unsubscribe([topics.round_filter(self._run, round_number)])
                self._retention.finish_clearing(round_number)

    def _clear(self, round_number: int) -> None:
        self._cleared.add(round_number)
        num_topics = 0
        for topic in self._retention.topics_of(self._run, round_number):
            self._transport.publish(topic, b"", retain=True)
            num_topics += 1
        logger.info("round=%d cleared topics=%d", round_number, num_topics)

    def _publish(self, topic: topics.Topic, payload: bytes) -> None:
        self.spoken(str(topic), payload)
        self._transport.publish(str(topic), payload, retain=True)


def _verify(folder: RoundFolder) -> None:
    """Raise unless a staged round is whole: a bad disk, or a power cut, may have taken of it what nobody would miss until a replay.

    Raises:
        FedMQError: names what is damaged.
        OSError: it can't be read.
    """
    result = parse(RoundResult, read_payload(folder, "result.json", max_bytes=MAX_MESSAGE_BYTES))
    plan = read_payload(folder, "plan.json", max_bytes=MAX_MESSAGE_BYTES)
    if result.plan_digest not in {None, hashlib.sha256(plan).hexdigest()}:
        raise ArchiveError("plan.json is not what the result names")
    digests = {f"updates/{outcome.node}": outcome.update_digest for outcome in result.outcomes if outcome.outcome == "accepted"}
    if result.aggregated:
        digests["global"] = result.global_digest
    for transfer in sorted({*digests, *folder.transfers()}):
        payload = read_payload(folder, f"{transfer}/manifest.json", max_bytes=MAX_MESSAGE_BYTES)
        manifest = parse(UpdateManifest if transfer.startswith("updates/") else GlobalManifest, payload)
        if manifest.sha256 != digests.get(transfer, manifest.sha256) or file_digest(folder.tensors_file(transfer)) != manifest.sha256:
            raise ArchiveError(f"{transfer}/tensors.safetensors is not what the round's result and manifest name")
