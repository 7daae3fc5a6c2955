"""Reads finished rounds from a broker's retained messages, by any identity that may read them; needs no aggregator."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from aggregator.recorded_round import RecordError
from aggregator.retention import AnyTransfer, chunk_topic, manifest_topic
from aggregator.round_folder import RoundFolder
from federation import topics
from federation.chunk_format import HEADER
from federation.chunks import Assembly, parse_chunk
from federation.errors import ArchiveError, RemoteProtocolError
from federation.messages import GlobalManifest, RoundPlan, RoundResult, RunState, UpdateManifest, parse

MAX_FETCHED_CHUNKS = 64
"""Chunks asked for one by one at a time."""

MAX_FETCHED_RESULTS = 64
"""Results asked for at a time."""

CHUNK_SECONDS = 10.0
"""How long a chunk may take to come: 256 KiB over a link of 256 kbit/s take eight."""


class ReadRetained(Protocol):
    """Reads what a broker retains (fedmq/retained_reader.py)."""

    def __call__(
        self, filters: Sequence[str], *, expected: Collection[str] | None = None, quiet_seconds: float = ...
    ) -> Iterable[tuple[str, bytes]]:
        """Return topic and payload of what is retained under topic filters now, in any order.

        Args:
            filters: topic filters.
            expected: the topics that must be there; when they have come, nothing else is waited for. By default the filters.
            quiet_seconds: a topic that has not come so long after the last message is taken to be absent.
        """
        ...


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
        """Return the rounds whose results are there, in order.

        From the newest backwards, as the run's state counts them: rounds are cleared oldest first, so what follows a gap is gone.

        Raises:
            ArchiveError: the broker holds no such run.
        """
        state = self.state()
        is_between = state.phase in {"waiting", "paused", "finished"}
        found: set[int] = set()
        # While a round is open, or was when the run was stopped, its result may be there already, newer than the state.
        last = state.round_number if is_between else state.round_number - 1
        if not is_between and self.payload(str(topics.ResultTopic(self._run, state.round_number))) is not None:
            found.add(state.round_number)
        while last > 0:
            wanted = {
                str(topics.ResultTopic(self._run, number)): number for number in range(max(1, last - MAX_FETCHED_RESULTS + 1), last + 1)
            }
            held = {wanted[topic] for topic, _ in self._read(list(wanted)) if topic in wanted}
            found |= held
            if len(held) < len(wanted):
                break
            last -= len(wanted)
        return sorted(found)

    def extract(self, round_number: int, into: Path) -> RoundFolder:
        """Read a round into an empty folder: plan, result, and the transfers that the result vouches for.

        Raises:
            ArchiveError: something is missing or not what its manifest says; the text names the topic.
        """
        folder = RoundFolder(path=into)
        prefix = topics.round_filter(self._run, round_number).removesuffix("#")
        found = {topic.removeprefix(prefix): payload for topic, payload in self._read([f"{prefix}plan", f"{prefix}result"])}
        for name in ("result", "plan"):
            if name not in found:
                raise RecordError(round_number, name, "the broker does not hold it")
            folder.add_payload(f"{name}.json", found[name])
        try:
            result = parse(RoundResult, found["result"])
        except RemoteProtocolError as error:
            raise RecordError(round_number, "result", str(error)) from None
        transfers = _transfers(found["plan"], found["result"])
        manifests = [str(manifest_topic(self._run, round_number, transfer)) for transfer in transfers]
        found |= {topic.removeprefix(prefix): payload for topic, payload in self._read(manifests)}
        for transfer in transfers:
            if transfer == "global" and not result.aggregated and "global/manifest" not in found:
                continue  # a round that nobody could finish may have lost its model; nothing was made of it
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
        for transfer in (name for name in _transfers(plan or b"", b"") if not name.startswith("updates/")):
            self._fetch(round_number, transfer, self.payload(str(manifest_topic(self._run, round_number, transfer))), folder)
        return folder

    def sizes(self) -> dict[int, int]:
        """Return each round's bytes on the broker, from plans, results and manifests: no tensor crosses the wire.

        After the finished rounds comes the open one, or the model that the last one ended with.

        Raises:
            ArchiveError: the broker holds no such run.
        """
        numbers = self.round_numbers()
        sizes: dict[int, int] = {}
        for start in range(0, len(numbers), MAX_FETCHED_RESULTS):
            sizes |= self._measure(numbers[start : start + MAX_FETCHED_RESULTS])
        newest = max(numbers, default=0) + 1
        return sizes | {number: size for number, size in self._measure([newest]).items() if size}

    def _measure(self, numbers: Sequence[int]) -> dict[int, int]:
        marks = {number: [str(kind(self._run, number)) for kind in (topics.PlanTopic, topics.ResultTopic)] for number in numbers}
        found = dict(self._read([topic for pair in marks.values() for topic in pair]))
        sizes = {number: sum(len(found.get(topic, b"")) for topic in pair) for number, pair in marks.items()}
        manifests: dict[str, int] = {}
        for number, (plan, result) in marks.items():
            transfers = _transfers(found.get(plan, b""), found.get(result, b""))
            manifests |= {str(manifest_topic(self._run, number, transfer)): number for transfer in transfers}
        for topic, payload in dict(self._read(list(manifests))).items():
            with suppress(RemoteProtocolError):
                manifest = parse(AnyTransfer, payload)
                sizes[manifests[topic]] += len(payload) + manifest.total_bytes + len(manifest.chunk_sha256) * HEADER.size
        return sizes

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
        self._take([f"{prefix}+"], prefix, assembly, reasons, expected=[f"{prefix}{index}" for index in range(len(manifest.chunk_sha256))])
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

    def _take(
        self,
        filters: Sequence[str],
        prefix: str,
        assembly: Assembly,
        reasons: dict[int, str],
        *,
        expected: Collection[str] | None = None,
    ) -> None:
        for topic, payload in self._read(filters, expected=expected, quiet_seconds=CHUNK_SECONDS):
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


def _transfers(plan: bytes, result: bytes) -> list[str]:
    """Return the transfers of a round as its plan and result name them; of an open round, those that its cohort may have begun.

    What is damaged names none: it is found, and named, by whoever checks the round.
    """
    transfers, nodes = ["global"], []
    with suppress(RemoteProtocolError):
        parsed = parse(RoundPlan, plan)
        nodes = parsed.cohort
        transfers += ["strategy"] if parsed.state_digest else []
    with suppress(RemoteProtocolError):
        nodes = [outcome.node for outcome in parse(RoundResult, result).outcomes if outcome.outcome == "accepted"]
    return [*transfers, *(f"updates/{node}" for node in nodes)]
