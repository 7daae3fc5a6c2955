"""Which finished rounds are where, and how large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aggregator.archive import Archive
from federation import topics
from federation.broker_address import BrokerAddress
from federation.chunk_format import HEADER
from federation.errors import ArchiveError, RejectReason, RemoteProtocolError, TransportError
from federation.messages import GlobalManifest, UpdateManifest, parse
from fedmq.retained_reader import RetainedReader
from fedmq.run_source import Origin


def list_rounds(run: str, origin: Origin, address: BrokerAddress, out_dir: Path) -> list[dict[str, Any]]:
    """Return round number, bytes on the broker and bytes in the archive of each round; None where it is not.

    Only manifests are read: no tensor crosses the wire.

    Raises:
        TransportError: the broker was asked for, and can't be reached.
        ArchiveError: there is nothing of this run.
    """
    archive = Archive(out_dir / "rounds")
    archived = {number: archive.bundle_file(number).stat().st_size for number in archive.round_numbers()}
    retained: dict[int, int] = {}
    if origin != "archive":
        try:
            retained = _measure_broker(run, address)
        except (TransportError, ArchiveError):
            if origin == "broker" or not archived:
                raise
    numbers = sorted(retained if origin == "broker" else retained.keys() | archived.keys())
    return [{"round_number": number, "broker_bytes": retained.get(number), "archive_bytes": archived.get(number)} for number in numbers]


def _measure_broker(run: str, address: BrokerAddress) -> dict[int, int]:
    sizes: dict[int, int] = {}
    with RetainedReader(address, run) as reader:
        for name, payload in reader.read(topics.manifest_filters(run)):
            try:
                number, num_bytes = _measure(topics.parse_topic(name), payload)
            except RemoteProtocolError:
                continue
            sizes[number] = sizes.get(number, 0) + num_bytes
    return sizes


def _measure(topic: topics.Topic, payload: bytes) -> tuple[int, int]:
    match topic:
        case topics.PlanTopic() | topics.ResultTopic():
            return topic.round_number, len(payload)
        case topics.UpdateManifestTopic():
            manifest: GlobalManifest | UpdateManifest = parse(UpdateManifest, payload)
        case topics.GlobalManifestTopic() | topics.StrategyManifestTopic():
            manifest = parse(GlobalManifest, payload)
        case _:
            raise RemoteProtocolError(f"{topic} says nothing of sizes", reason=RejectReason.UNKNOWN_TOPIC)
    return topic.round_number, len(payload) + manifest.total_bytes + len(manifest.chunk_sha256) * HEADER.size
