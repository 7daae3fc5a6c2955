"""A zombie and its successor on one disk: neither takes a file away under the other's hands."""

from __future__ import annotations

import threading
from pathlib import Path

from aggregator.checkpoint import write_atomically
from aggregator.round_keeper import RoundsArchived
from federation.transport import Delivered
from tests.machines.federation_pair import FederationPair


def test_two_writers_of_one_file_leave_it_whole(tmp_path: Path) -> None:
    file, failures = tmp_path / "retained.jsonl", []
    begin = threading.Barrier(2)

    def write(content: bytes) -> None:
        begin.wait()
        try:
            for _ in range(300):
                write_atomically(file, content)
        except OSError as error:
            failures.append(error)

    contents = [letter * 4096 for letter in (b"a", b"b")]
    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert file.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [file]


def test_zombie_that_reads_of_its_successor_writes_nothing_more(tmp_path: Path) -> None:
    """Its summary and model would go over those of the run as it is by now."""
    pair = FederationPair(tmp_path)
    pair.start()
    pair.run(until=lambda: "fedmq/v2/pair/rounds/2/plan" in pair.broker.retained)
    zombie = pair.aggregator_service
    pair.broker.sever("pair-aggregator")
    pair.aggregator.kill()
    pair.start_aggregator(is_resuming=True)
    pair.run(until=lambda: pair.aggregator_service._coordinator.phase.name == "COLLECTING")
    pair.broker.deliver()
    summary, model = tmp_path / "out" / "summary.json", tmp_path / "out" / "model.safetensors"
    summary.write_bytes(b"the successor's")
    state = "fedmq/v2/pair/state"
    zombie.take(Delivered(topic=state, payload=pair.broker.retained[state], retained=False))
    assert zombie.stopped is not None
    assert zombie.stopped.is_fenced
    assert summary.read_bytes() == b"the successor's"
    assert not model.exists()


def test_zombie_that_has_archived_a_round_leaves_the_ledger_to_its_successor(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path)
    pair.start()
    pair.run(until=lambda: "fedmq/v2/pair/rounds/2/plan" in pair.broker.retained)
    zombie = pair.aggregator_service
    pair.broker.sever("pair-aggregator")
    pair.aggregator.kill()
    pair.start_aggregator(is_resuming=True)
    pair.run(until=lambda: pair.aggregator_service._coordinator.phase.name == "COLLECTING")
    ledger = tmp_path / "aggregator" / "pair" / "retained.jsonl"
    ledger.write_bytes(b"the successor's")
    zombie.take(RoundsArchived())
    assert zombie.stopped is not None
    assert zombie.stopped.is_fenced
    assert ledger.read_bytes() == b"the successor's"
