"""Reads finished rounds from a broker's retained messages, by any identity that may read them; needs no aggregator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

from aggregator.recorded_round import RecordError
from aggregator.retention import chunk_topic, manifest_topic
from aggregator.round_folder import RoundFolder
from federation import topics
from federation.chunks import Assembly, parse_chunk
from federation.errors import ArchiveError, RemoteProtocolError
from federation.messages import GlobalManifest, RoundResult, RunState, UpdateManifest, parse

ReadRetained: TypeAlias = Callable[[Sequence[str]], Iterable[tuple[str, bytes]]]
"""Topic filters -> topic and payload of everything retained under them now."""

MAX_FETCHED_CHUNKS = 64
"""Chunks asked for one by one at a time."""


class BrokerRounds:
    """The finished rounds of one run on a broker. Implements `aggregator.replay.RoundSource`."""

    def __init__(self, run: str, read: ReadRetained) -> None:
        self._run = run
        self._read = read

    def state(self) -> RunState:
        """Return the run's state.

        Raises:
            ArchiveError: the broker holds no such run.
        """
        payload = self.payload(str(topics.StateTopic(self._run)))
        if payload is None:
            raise ArchiveError(f"the broker holds no run {self._run!r}; `fedmq status` lists those it holds")
        return parse(RunState, payload)

    def payload(self, topic: str) -> bytes | None:
        """Return what is retained on one topic, or None."""
        return dict(self._read([topic])).get(topic)

    def round_numbers(self) -> list[int]:
        """Return the rounds whose results are there, in order."""
        found = set()
        for topic, _ in self._read([topics.result_filter(self._run)]):
            try:
                parsed = topics.parse_topic(topic)
            except RemoteProtocolError:
                continue
            if isinstance(parsed, topics.ResultTopic):
                found.add(parsed.round_number)
        return sorted(found)

    def extract(self, round_number: int, into: Path) -> RoundFolder:
        """Read a round into an empty folder: plan, result, and the transfers that the result vouches for.

        Raises:
            ArchiveError: something is missing or not what its manifest says; the text names the topic.
        """
        folder = RoundFolder(path=into)
        prefix = topics.round_filter(self._run, round_number).removesuffix("#")
        filters = [f"{prefix}{name}" for name in ("plan", "result", "global/manifest", "strategy/manifest", "updates/+/manifest")]
        found = {topic.removeprefix(prefix): payload for topic, payload in self._read(filters)}
        for name in ("result", "plan"):
            if name not in found:
                raise RecordError(round_number, name, "the broker does not hold it")
            folder.add_payload(f"{name}.json", found[name])
        try:
            result = parse(RoundResult, found["result"])
        except RemoteProtocolError as error:
            raise RecordError(round_number, "result", str(error)) from None
        accepted = [f"updates/{outcome.node}" for outcome in result.outcomes if outcome.outcome == "accepted"]
        strategy = ["strategy"] if "strategy/manifest" in found else []
        # A round that nobody could finish may have lost its model; nothing was made of it.
        start = ["global"] if result.aggregated or "global/manifest" in found else []
        for transfer in (*start, *strategy, *accepted):
            self._fetch(round_number, transfer, found.get(f"{transfer}/manifest"), folder)
        return folder

    def extract_start(self, round_number: int, into: Path) -> RoundFolder:
        """Read what a round began with into an empty folder: its plan, the global model and the strategy's state, where it has one.

        Raises:
            ArchiveError: plan or model are missing, or something is not what its manifest says.
        """
        folder = RoundFolder(path=into)
        plan = self.payload(str(topics.PlanTopic(self._run, round_number)))
        if plan is not None:
            folder.add_payload("plan.json", plan)
        for transfer in ("global", "strategy"):
            manifest = self.payload(str(manifest_topic(self._run, round_number, transfer)))
            if manifest is not None or transfer == "global":
                self._fetch(round_number, transfer, manifest, folder)
        return folder

    def _fetch(self, round_number: int, transfer: str, payload: bytes | None, folder: RoundFolder) -> None:
        name = f"{transfer}/manifest"
        if payload is None:
            raise RecordError(round_number, name, "the broker does not hold it")
        folder.add_payload(f"{name}.json", payload)
        try:
            manifest = parse(UpdateManifest if transfer.startswith("updates/") else GlobalManifest, payload)
            file = folder.place(f"{transfer}/tensors.safetensors")
            assembly = Assembly(file, expected_bytes=manifest.total_bytes, max_bytes=manifest.total_bytes)
            assembly.set_manifest(manifest)
        except RemoteProtocolError as error:
            raise RecordError(round_number, name, str(error)) from None
        prefix = str(chunk_topic(self._run, round_number, transfer, 0)).removesuffix("0")
        reasons: dict[int, str] = {}
        self._take([f"{prefix}+"], prefix, assembly, reasons)
        if missing := assembly.missing():
            # A broker drops what its queue for us can't hold: a few at a time, all that is there comes.
            for start in range(0, len(missing), MAX_FETCHED_CHUNKS):
                self._take([f"{prefix}{index}" for index in missing[start : start + MAX_FETCHED_CHUNKS]], prefix, assembly, reasons)
        if missing := assembly.missing():
            detail = reasons.get(missing[0], "the broker does not hold it")
            raise RecordError(round_number, f"{transfer}/chunks/{missing[0]}", detail)
        try:
            assembly.finish()
        except RemoteProtocolError as error:
            raise RecordError(round_number, name, str(error)) from None

    def _take(self, filters: Sequence[str], prefix: str, assembly: Assembly, reasons: dict[int, str]) -> None:
        for topic, payload in self._read(filters):
            number = topic.removeprefix(prefix)
            if not number.isdecimal():
                continue
            try:
                chunk = parse_chunk(payload)
                if chunk.index != int(number):
                    reasons[int(number)] = f"it holds chunk {chunk.index}"
                elif not assembly.add_chunk(chunk) and chunk.index in assembly.missing():
                    reasons[int(number)] = "it is not what its manifest says"
            except RemoteProtocolError as error:
                reasons[int(number)] = str(error)
