"""Everything the aggregator says on the wire, and what of it belongs to the open round's record."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from aggregator.checkpoint import CheckpointStore
from aggregator.events import RestoreUpdate, SendAck
from aggregator.retention import chunk_topic, manifest_topic
from federation import topics
from federation.chunk_format import chunk_bytes_for, preferred_chunk_bytes
from federation.chunks import ChunkedFile
from federation.errors import CheckpointError
from federation.messages import (
    Ack,
    GlobalManifest,
    RejectedMessages,
    RejectionReport,
    RoundPlan,
    RoundResult,
    RunState,
    UpdateManifest,
    parse,
)
from federation.rejections import Rejected
from federation.transport import Transport

logger = logging.getLogger("aggregator")


NUM_REMEMBERED = 4096
"""Plans, results and manifests whose last wording is remembered: more rounds than a zombie can lag behind."""


class Publisher:
    """Speaks for the aggregator of one run.

    Args:
        run: the run's name.
        transport: carries it.
        store: where global models and strategy states are read from.
    """

    def __init__(self, *, run: str, transport: Transport, store: CheckpointStore) -> None:
        self._run = run
        self._transport = transport
        self._store = store
        self.max_packet_bytes: int | None = None
        """The broker's Maximum Packet Size."""
        self._round_number = 0
        self._spoken: OrderedDict[str, bytes] = OrderedDict()
        self.recorded: dict[str, bytes] = {}
        """What was said in the open round, by name in its record."""
        self.recorded_files: dict[str, Path] = {}
        """Likewise, the tensors that were published."""

    def note_spoken(self, topic: str, payload: bytes) -> None:
        """Remember what was last said on a topic, for `is_foreign`."""
        self._spoken.pop(topic, None)
        self._spoken[topic] = hashlib.sha256(payload).digest()
        while len(self._spoken) > NUM_REMEMBERED:
            self._spoken.popitem(last=False)

    def is_foreign(self, topic: str, payload: bytes) -> bool:
        """Return whether somebody else has said this on a topic that we have spoken on."""
        return topic in self._spoken and self._spoken[topic] != hashlib.sha256(payload).digest()

    def begin_round(self, round_number: int) -> None:
        """Record what is said of this round from now on."""
        self._round_number = round_number
        self.recorded = {}
        self.recorded_files = {}

    def state(self, state: RunState) -> None:
        """Publish the run's state."""
        self._publish(topics.StateTopic(self._run), state.to_payload())

    def round(self, plan: RoundPlan) -> None:
        """Publish a round's plan, then what it begins with, chunks before manifests."""
        payload = plan.to_payload()
        self.recorded["plan.json"] = payload
        self.note_spoken(str(topics.PlanTopic(self._run, plan.round_number)), payload)
        self._publish(topics.PlanTopic(self._run, plan.round_number), payload)
        if plan.state_digest is not None:
            self._transfer(plan.round_number, "strategy", self._store.global_path(plan.state_digest), plan.state_digest)
        self.global_model(plan.round_number, plan.global_digest)

    def global_model(self, round_number: int, digest: str) -> None:
        """Publish the global model of a round."""
        self._transfer(round_number, "global", self._store.global_path(digest), digest)

    def rejections(self, entries: Sequence[Rejected]) -> None:
        """Publish what could not be used, for `fedmq status`."""
        report = RejectionReport(run=self._run, entries=[RejectedMessages(**asdict(entry)) for entry in entries])
        self._publish(topics.RejectionsTopic(self._run), report.to_payload())

    def clear_control(self) -> None:
        """Take the operator's wish off the broker."""
        self._publish(topics.ControlTopic(self._run), b"")

    def ack(self, effect: SendAck, *, epoch: int) -> None:
        """Tell a node what became of its update."""
        ack = Ack(
            run=self._run,
            round_number=effect.round_number,
            epoch=epoch,
            node=effect.node,
            outcome=effect.outcome,
            sha256=effect.sha256,
            reason=effect.reason[:500],
        )
        payload = ack.to_payload()
        if effect.round_number == self._round_number:
            # The first is the outcome that counts; later ones answer what came again.
            self.recorded.setdefault(f"acks/{effect.node}.json", payload)
        self._publish(topics.AckTopic(self._run, effect.round_number, effect.node), payload, retain=False)

    def request(self, round_number: int, node: str, *, epoch: int, sha256: str | None, missing: list[int]) -> None:
        """Ask a node for the chunks that its offered update lacks."""
        logger.info("round=%d node=%s update=incomplete missing=%d", round_number, node, len(missing))
        ack = Ack(run=self._run, round_number=round_number, epoch=epoch, node=node, outcome="incomplete", sha256=sha256, missing=missing)
        self._publish(topics.AckTopic(self._run, round_number, node), ack.to_payload(), retain=False)

    def restore_update(self, effect: RestoreUpdate, manifest: bytes, path: Path) -> None:
        """Publish an accepted update again as it came: its chunks where asked for, then its manifest, byte for byte."""
        logger.warning("round=%d node=%s update=restored: the node had put another in its place", effect.round_number, effect.node)
        transfer = f"updates/{effect.node}"
        if effect.with_chunks:
            source = ChunkedFile(path, parse(UpdateManifest, manifest).chunk_bytes)
            for index in range(source.num_chunks):
                self._publish(chunk_topic(self._run, effect.round_number, transfer, index), partial(source.payload, index))
        self._publish(manifest_topic(self._run, effect.round_number, transfer), manifest)

    def result(self, result: RoundResult) -> None:
        """Publish what became of a round."""
        payload = result.to_payload()
        self.recorded["result.json"] = payload
        self.note_spoken(str(topics.ResultTopic(self._run, result.round_number)), payload)
        self._publish(topics.ResultTopic(self._run, result.round_number), payload)

    def _transfer(self, round_number: int, transfer: str, path: Path, digest: str) -> None:
        source = ChunkedFile(path, chunk_bytes_for(self.max_packet_bytes, preferred_chunk_bytes(path.stat().st_size)))
        if source.sha256 != digest:
            raise CheckpointError(f"{path} is not {digest}: the file was changed")
        for index in range(source.num_chunks):
            self._publish(chunk_topic(self._run, round_number, transfer, index), partial(source.payload, index))
        manifest = GlobalManifest(
            run=self._run,
            round_number=round_number,
            total_bytes=source.total_bytes,
            chunk_bytes=source.chunk_bytes,
            sha256=source.sha256,
            chunk_sha256=list(source.chunk_sha256),
        )
        payload = manifest.to_payload()
        self.recorded[f"{transfer}/manifest.json"] = payload
        self.recorded_files[f"{transfer}/tensors.safetensors"] = path
        self._publish(manifest_topic(self._run, round_number, transfer), payload)

    def _publish(self, topic: topics.Topic, payload: bytes | Callable[[], bytes], *, retain: bool = True) -> None:
        self._transport.publish(str(topic), payload, retain=retain)
