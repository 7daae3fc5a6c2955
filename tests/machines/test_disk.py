"""A disk fails its process: damaged files are made anew, a full one is said, and the run goes on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from aggregator.archive import Archive
from aggregator.round_folder import RoundFolder
from edge_node.spool import Spool
from federation import topics
from federation.chunks import Assembly, Chunk
from federation.messages import NodeStatus, parse
from federation.transport import Connected
from tests.machines.federation_pair import FederationPair
from tests.machines.test_federation import assert_whole, expected_digest, results
from tests.small_disk import remount, small_disk


def flip(file: Path) -> None:
    """Change one byte, as a bad sector may."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def empty(file: Path) -> None:
    """Leave the name, as a power cut does to a file that was renamed and never synced."""
    os.truncate(file, 0)


def halve(file: Path) -> None:
    """Leave the first half."""
    os.truncate(file, file.stat().st_size // 2)


def shorten(file: Path) -> None:
    """Take the last byte."""
    os.truncate(file, file.stat().st_size - 1)


def zero(file: Path) -> None:
    """Leave the size, and nothing in it."""
    size = file.stat().st_size
    os.truncate(file, 0)
    os.truncate(file, size)


Damage: TypeAlias = Callable[[Path], None]
DAMAGES = [flip, empty, halve, shorten, zero, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["update.safetensors", "update.json"])
def test_damaged_update_is_trained_again_to_the_same_bytes(tmp_path: Path, damage: Damage, name: str) -> None:
    pair = FederationPair(tmp_path, num_rounds=1)
    pair.start()
    folder = tmp_path / "n1" / "pair" / "1"
    pair.run(until=lambda: (folder / "update.json").exists())
    pair.kill("n1")
    damage(folder / name)
    pair.start_node("n1")
    pair.run()
    assert_whole(pair, num_rounds=1)
    assert pair.learners["n1"].num_trainings == 2


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_global_model_is_fetched_again(tmp_path: Path, damage: Damage) -> None:
    pair = FederationPair(tmp_path, num_rounds=1)
    pair.start()
    folder = tmp_path / "n1" / "pair" / "1"
    pair.run(until=lambda: (folder / "global.safetensors").exists() and not (folder / "update.json").exists())
    pair.kill("n1")
    damage(folder / "global.safetensors")
    pair.start_node("n1")
    pair.run(until=lambda: bool(results(pair)))
    assert pair.now < 1000.0 + 60.0, "within the node's patience, not at the round's deadline"
    pair.run()
    assert_whole(pair, num_rounds=1)


@pytest.mark.parametrize("damage", DAMAGES)
def test_update_that_is_damaged_under_its_node_is_trained_again(tmp_path: Path, damage: Damage) -> None:
    """Between two connections, to brokers that take packets of different sizes."""
    pair = FederationPair(tmp_path, num_rounds=1)
    pair.start()
    folder = tmp_path / "n1" / "pair" / "1"
    pair.run(until=lambda: (folder / "update.json").exists())
    service = pair.seats["n1"].service
    assert service is not None
    service.take(Connected(session_present=False, max_packet_bytes=4096))
    damage(folder / "update.safetensors")
    service.take(Connected(session_present=False, max_packet_bytes=4000))
    pair.run()
    assert_whole(pair, num_rounds=1)


def test_node_whose_disk_turns_read_only_says_so_and_takes_part_once_it_is_mended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A real disk: what can't be deleted, made or written costs the node its rounds, and no process."""
    disk = tmp_path / "n2"
    with small_disk(disk, "256m"):
        pair = FederationPair(tmp_path, num_rounds=5, quorum=0.6, min_nodes=2)
        pair.start()
        pair.run(until=lambda: (disk / "pair" / "1" / "update.json").exists())
        remount(disk, "ro")
        topic = str(topics.StatusTopic("pair", "n2"))
        pair.run(until=lambda: b"Read-only file system" in pair.broker.retained.get(topic, b""))
        pair.run(until=lambda: len(results(pair)) == 2)
        remount(disk, "rw")
        pair.run()
        assert [result.accepted for result in results(pair)][-1] == 3
    assert not [record for record in caplog.records if record.exc_info]


def test_disk_that_fills_up_under_the_model_is_said_and_the_round_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first round's model finds no room on n2; by the second there is some again."""
    write = Assembly._write

    def write_unless_full(self: Assembly, chunk: Chunk) -> None:
        if self.path.is_relative_to(tmp_path / "n2" / "pair" / "1"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, chunk)

    monkeypatch.setattr(Assembly, "_write", write_unless_full)
    pair = FederationPair(tmp_path, num_rounds=3, quorum=0.6)
    pair.start()
    topic = str(topics.StatusTopic("pair", "n2"))
    pair.run(until=lambda: b"No space left" in pair.broker.retained.get(topic, b""))
    assert "round 1" in parse(NodeStatus, pair.broker.retained[topic]).problem
    pair.run()
    first, *_, last = results(pair)
    assert {outcome.node: outcome.outcome for outcome in first.outcomes} == {"n0": "accepted", "n1": "accepted", "n2": "discarded"}
    assert (last.accepted, len(results(pair))) == (3, 3)


@pytest.mark.parametrize("place", ["model", "update"])
def test_disk_that_is_full_for_a_while_changes_no_model_at_full_quorum(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six seconds, then somebody makes room: the node tries again within the round, before its deadline."""
    write, store = Assembly._write, Spool.store_update
    full_until: list[float] = []

    def fail_for_a_while(path: Path) -> None:
        if not path.is_relative_to(tmp_path / "n2" / "pair"):
            return
        if not full_until:
            full_until.append(pair.now + 6.0)
        if pair.now < full_until[0]:
            raise OSError(errno.ENOSPC, "No space left on device")

    def write_or_fail(self: Assembly, chunk: Chunk) -> None:
        fail_for_a_while(self.path)
        write(self, chunk)

    def store_or_fail(self: Spool, round_number: int, *arguments: Any, **facts: Any) -> None:
        fail_for_a_while(self.update_path(round_number))
        store(self, round_number, *arguments, **facts)

    monkeypatch.setattr(*((Assembly, "_write", write_or_fail) if place == "model" else (Spool, "store_update", store_or_fail)))
    pair = FederationPair(tmp_path)
    pair.start()
    topic = str(topics.StatusTopic("pair", "n2"))
    pair.run(until=lambda: b"No space left" in pair.broker.retained.get(topic, b""))
    pair.run()
    assert_whole(pair)
    assert pair.now < 1000.0 + 300.0


def test_both_files_damaged_in_the_middle_of_a_run_change_no_digest(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path)
    pair.start()
    folder = tmp_path / "n0" / "pair" / "2"
    pair.run(until=lambda: (folder / "update.json").exists())
    pair.kill("n0")
    for name in ("global.safetensors", "update.safetensors"):
        halve(folder / name)
    pair.start_node("n0")
    pair.run()
    assert pair.global_digest == expected_digest()


def test_archive_that_finds_no_room_leaves_rounds_on_the_broker_and_takes_them_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even a budget of nothing clears a round that is not archived."""
    write = Archive.write
    is_full = True

    def write_unless_full(self: Archive, round_number: int, source: RoundFolder) -> int:
        if is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, round_number, source)

    monkeypatch.setattr(Archive, "write", write_unless_full)
    pair = FederationPair(tmp_path, num_rounds=5, retained_bytes=0)
    pair.start()
    pair.run(until=lambda: "fedmq/v2/pair/rounds/4/plan" in pair.broker.retained)
    assert "round=1 archive=failed" in caplog.text
    assert {f"fedmq/v2/pair/rounds/{number}/result" for number in (1, 2, 3)} <= pair.broker.retained.keys()
    is_full = False
    pair.run()
    assert pair.global_digest == expected_digest(num_rounds=5)
    assert Archive(tmp_path / "out" / "rounds").round_numbers() == [1, 2, 3, 4, 5]


def test_aggregator_whose_disk_is_full_ends_and_is_continued_to_the_same_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Assembly._write
    is_full = True

    def write_unless_full(self: Assembly, chunk: Chunk) -> None:
        if is_full and self.path.is_relative_to(tmp_path / "aggregator"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, chunk)

    monkeypatch.setattr(Assembly, "_write", write_unless_full)
    pair = FederationPair(tmp_path)
    pair.start()
    pair.run(until=lambda: pair.aggregator_service.stopped is not None)
    stopped = pair.aggregator_service.stopped
    assert stopped is not None
    assert stopped.failed
    assert "No space left on device): make room or mend it, then continue with --resume" in stopped.reason
    pair.kill("aggregator")
    is_full = False
    pair.start_aggregator(is_resuming=True)
    pair.run()
    assert_whole(pair)
