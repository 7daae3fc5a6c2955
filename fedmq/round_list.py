"""Which finished rounds are where, and how large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aggregator.archive import Archive
from aggregator.broker_rounds import BrokerRounds
from federation.broker_address import BrokerAddress
from federation.errors import ArchiveError, TransportError
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
    with RetainedReader(address) as reader:
        return BrokerRounds(run, reader.read).sizes()
