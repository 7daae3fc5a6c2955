"""Checks one round's record against itself: every byte of it is vouched for by something else.

    previous result's digest -> result -> plan's digest, updates' digests, global model's digest
    manifest -> chunks' digests -> tensors;  signatures -> manifests and result

A `RecordError` names the round and the place; nothing that is not vouched for is ever aggregated.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from aggregator.round_folder import RoundFolder, read_payload
from federation.chunks import ChunkedFile
from federation.codec import FileParams
from federation.errors import ArchiveError, LocalProtocolError, RemoteProtocolError, SettingsError
from federation.learning.algorithms import Update
from federation.learning.exchange import Exchange, build_exchange, sets_of
from federation.learning.sets import Sets
from federation.messages import (
    MAX_MESSAGE_BYTES,
    Ack,
    GlobalManifest,
    Message,
    NodeOutcome,
    RoundPlan,
    RoundResult,
    Transfer,
    UpdateManifest,
    parse,
)
from federation.params import check_finite
from federation.signing import TrustedKeys

M = TypeVar("M", bound=Message)
T = TypeVar("T", bound=Transfer)


class RecordError(ArchiveError):
    """A round's record contradicts itself.

    Args:
        round_number: which round.
        place: which file or topic of it, chunk included.
        detail: what is wrong there.
    """

    def __init__(self, round_number: int, place: str, detail: str) -> None:
        super().__init__(f"round {round_number}: {place}: {detail}")
        self.round_number = round_number
        self.place = place


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What a round leaves to the next one."""

    result_digest: str
    next_global_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRound:
    """A round's record, checked."""

    plan: RoundPlan
    result: RoundResult
    result_digest: str
    folder: RoundFolder
    exchange: Exchange | None = field(repr=False)
    """The method, and how its sets travelled; None where a round that nobody could finish has lost its model."""
    updates: tuple[Update, ...] = field(repr=False)
    """The accepted ones, in node-id order, read from disk and decoded on access; none without an exchange."""

    @property
    def link(self) -> Link:
        """What the next round must name."""
        return Link(result_digest=self.result_digest, next_global_digest=self.result.next_global_digest)

    @property
    def sets(self) -> Sets:
        """All sets at the start of the round: those that nodes were sent, and those that stayed on the server."""
        return _sets_in(self.folder, "global", *(["strategy"] if self.plan.state_digest else []))


class RecordChecker:
    """Checks records of one run.

    Args:
        run: the run's name.
        trusted_keys: by which manifests and results must be signed; None leaves signatures unchecked.
    """

    def __init__(self, run: str, trusted_keys: TrustedKeys | None) -> None:
        self._run = run
        self._trusted_keys = trusted_keys

    def check(self, folder: RoundFolder, round_number: int, previous: Link | None) -> RecordedRound:
        """Return a round's record, every byte of it checked.

        Args:
            folder: the record.
            round_number: which round it must be.
            previous: what the round before left; None where that is not known.

        Raises:
            RecordError: names what does not hold.
        """
        place = _Place(round_number)
        result, result_digest = self.check_result(folder, round_number, previous)
        plan = self._check_plan(place, folder, result)
        if result.aggregated or "global" in folder.transfers():
            self._check_transfer(place, folder, "global", GlobalManifest, result.global_digest)
        if plan.state_digest is not None:
            self._check_transfer(place, folder, "strategy", GlobalManifest, plan.state_digest)
        accepted = [outcome for outcome in result.outcomes if outcome.outcome == "accepted"]
        stray = sorted({*folder.updates()} - {outcome.node for outcome in accepted})
        if stray:
            raise place.fault(f"updates/{stray[0]}", "the result accepted no update of this node")
        down = _sets_in(folder, "global") if "global" in folder.transfers() else None
        exchange = self._exchange(place, plan, down) if down is not None else None
        updates = [self._check_update(place, folder, outcome, result, exchange, down) for outcome in accepted]
        self._check_acks(place, folder, result)
        return RecordedRound(
            plan=plan,
            result=result,
            result_digest=result_digest,
            folder=folder,
            exchange=exchange,
            updates=tuple(update for update in updates if update is not None),
        )

    def check_result(self, folder: RoundFolder, round_number: int, previous: Link | None) -> tuple[RoundResult, str]:
        """Return a round's result and its digest, as far as it can be checked without the rest of the record.

        Raises:
            RecordError: names what does not hold.
        """
        place = _Place(round_number)
        result, payload = self._read(place, folder, "result.json", RoundResult)
        if self._trusted_keys is not None:
            try:
                self._trusted_keys.check(result)
            except RemoteProtocolError as error:
                raise place.fault("result.json", str(error)) from None
        if place.round_number == 1 and result.previous_result_digest is not None:
            raise place.fault("result.json", "it names a result before the first")
        if previous is not None and result.previous_result_digest != previous.result_digest:
            raise place.fault("result.json", f"it follows another result than that of round {place.round_number - 1}: the chain is broken")
        if previous is not None and result.global_digest != previous.next_global_digest:
            raise place.fault("result.json", f"it begins with another model than round {place.round_number - 1} ended with")
        counts = {name: sum(outcome.outcome == name for outcome in result.outcomes) for name in ("accepted", "rejected", "discarded")}
        if counts["accepted"] != result.accepted or counts["rejected"] != result.rejected or counts["discarded"] > result.discarded:
            raise place.fault("result.json", "its counts contradict its outcomes")
        return result, hashlib.sha256(payload).hexdigest()

    def _check_plan(self, place: _Place, folder: RoundFolder, result: RoundResult) -> RoundPlan:
        plan, payload = self._read(place, folder, "plan.json", RoundPlan)
        if hashlib.sha256(payload).hexdigest() != result.plan_digest:
            raise place.fault("plan.json", "it is not the plan that the result names")
        if (plan.global_digest, plan.method.name) != (result.global_digest, result.method):
            raise place.fault("plan.json", "it contradicts the result")
        if plan.cohort != [outcome.node for outcome in result.outcomes]:
            raise place.fault("plan.json", "its cohort is not that of the result's outcomes")
        return plan

    def _exchange(self, place: _Place, plan: RoundPlan, down: Sets) -> Exchange:
        try:
            return build_exchange(plan.method, plan.codec, num_nodes=plan.num_nodes, down=down.signatures)
        except (SettingsError, KeyError) as error:
            raise place.fault("plan.json", f"it can't be repeated here: {error}") from None

    def _check_update(
        self, place: _Place, folder: RoundFolder, outcome: NodeOutcome, result: RoundResult, exchange: Exchange | None, down: Sets | None
    ) -> Update | None:
        transfer = f"updates/{outcome.node}"
        name = f"{transfer}/manifest.json"
        manifest = self._check_transfer(place, folder, transfer, UpdateManifest, outcome.update_digest or "")
        facts = (manifest.node, manifest.num_examples, manifest.metrics, manifest.base_digest)
        if facts != (outcome.node, outcome.num_examples, outcome.metrics, result.global_digest):
            raise place.fault(name, "it contradicts the result's outcome of this node")
        try:
            if self._trusted_keys is not None:
                self._trusted_keys.check(manifest)
        except RemoteProtocolError as error:
            raise place.fault(name, str(error)) from None
        if exchange is None:
            return None
        try:
            tensors = FileParams(folder.tensors_file(transfer), exchange.update_signature)
            for decoded in exchange.decode(tensors, None).values():
                check_finite(decoded)
        except RemoteProtocolError as error:
            raise place.fault(f"{transfer}/tensors.safetensors", str(error)) from None
        return Update(node=outcome.node, num_examples=manifest.num_examples, sets=exchange.decode(tensors, down))

    def _check_transfer(self, place: _Place, folder: RoundFolder, transfer: str, kind: type[T], digest: str) -> T:
        manifest, _ = self._read(place, folder, f"{transfer}/manifest.json", kind)
        if manifest.sha256 != digest:
            raise place.fault(f"{transfer}/manifest.json", f"it is of {manifest.sha256[:12]}, the result names {digest[:12]}")
        try:
            source = ChunkedFile(folder.tensors_file(transfer), manifest.chunk_bytes)
        except (OSError, LocalProtocolError) as error:
            raise place.fault(f"{transfer}/tensors.safetensors", f"it can't be read: {error}") from None
        if len(manifest.chunk_sha256) != source.num_chunks or manifest.total_bytes != source.total_bytes:
            raise place.fault(f"{transfer}/manifest.json", "its sizes are not those of the tensors")
        for index, (stated, found) in enumerate(zip(manifest.chunk_sha256, source.chunk_sha256, strict=True)):
            if stated != found:
                raise place.fault(f"{transfer}/chunks/{index}", "it is not what its manifest says")
        if source.sha256 != digest:
            raise place.fault(f"{transfer}/manifest.json", "its chunks' digests are not those of the whole")
        return manifest

    def _check_acks(self, place: _Place, folder: RoundFolder, result: RoundResult) -> None:
        outcomes = {outcome.node: outcome for outcome in result.outcomes}
        for name in folder.file_names():
            if not name.startswith("acks/"):
                continue
            ack, _ = self._read(place, folder, name, Ack)
            outcome = outcomes.get(Path(name).stem)
            if outcome is not None and (ack.node, ack.outcome, ack.sha256) != (outcome.node, outcome.outcome, outcome.update_digest):
                raise place.fault(name, "it contradicts the result's outcome of this node")

    def _read(self, place: _Place, folder: RoundFolder, name: str, kind: type[M]) -> tuple[M, bytes]:
        try:
            payload = read_payload(folder, name, max_bytes=MAX_MESSAGE_BYTES)
            message = parse(kind, payload)
        except (ArchiveError, RemoteProtocolError) as error:
            raise place.fault(name, str(error).removeprefix(f"{name} ")) from None
        # Fields that a later version added are not in an older record.
        if message.model_dump_json(exclude_unset=True).encode() != payload:
            raise place.fault(name, "it is not written as FedMQ writes it")
        if (getattr(message, "run", None), getattr(message, "round_number", None)) != (self._run, place.round_number):
            raise place.fault(name, f"it is of another run or round than {self._run}, {place.round_number}")
        return message, payload


def _sets_in(folder: RoundFolder, *transfers: str) -> Sets:
    files = [FileParams(folder.tensors_file(transfer)) for transfer in transfers]
    return Sets({name: tensors for file in files for name, tensors in sets_of(file, file.signature).items()})


@dataclass(frozen=True, slots=True)
class _Place:
    round_number: int

    def fault(self, place: str, detail: str) -> RecordError:
        return RecordError(self.round_number, place, detail)
