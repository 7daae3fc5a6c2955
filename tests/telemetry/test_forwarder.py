"""Points reach a real InfluxDB once each, however often either side goes away."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from aggregator.database import OTHER_KIND, Database, DatabaseUnavailableError
from aggregator.database_address import DatabaseAddress
from aggregator.forwarder import Forwarder
from aggregator.journal import Journal
from federation.metrics import Point, make_point
from tests.small_disk import fill, make_room, remount, small_disk
from tests.telemetry.influx import InfluxServer

START = time.time_ns() - 3_600 * 10**9
"""An hour ago: the samples' bucket drops what is older than 30 days."""
TAGS = {"run": "r", "strategy": "fedavg"}
WAIT_SECONDS = 60.0


def point(number: int) -> Point:
    """Return a round's point."""
    return make_point("round", TAGS, {"round_number": number, "accuracy": number / 1000}, START + number)


def sample(number: int) -> Point:
    """Return a device's point."""
    return make_point("device", TAGS | {"node": "node-0"}, {"cpu": 0.5, "throttled": 0}, START + number)


def address(server: InfluxServer, bucket: str) -> DatabaseAddress:
    """Return what the writer is told."""
    return DatabaseAddress(url=server.url, token="secret", bucket=bucket)


def journal_with(tmp_path: Path, points: list[Point]) -> Journal:
    """Return an opened journal that holds points."""
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.open(is_resumed=True)
    journal.append(points)
    return journal


def wait_until_written(forwarder: Forwarder) -> None:
    """Return once nothing waits."""
    give_up_at = time.monotonic() + WAIT_SECONDS
    while forwarder.num_waiting_bytes:
        assert time.monotonic() < give_up_at, forwarder.problem
        time.sleep(0.02)


def test_points_go_to_the_bucket_of_their_measurement(influx: InfluxServer, bucket: str, tmp_path: Path) -> None:
    journal = journal_with(tmp_path, [point(1), sample(1), point(2)])
    forwarder = Forwarder(journal, Database(address(influx, bucket)))
    forwarder.start()
    journal.append([sample(2), sample(3)])
    assert forwarder.stop(WAIT_SECONDS)
    assert influx.count("round", bucket) == 2
    assert influx.count("device", f"{bucket}_samples") == 3
    [series] = influx.query('SELECT "accuracy", "round_number" FROM "round" WHERE "run" = \'r\'', database=bucket)
    assert series["values"] == [[START + 1, 0.001, 1], [START + 2, 0.002, 2]]


def test_a_restart_goes_on_where_the_last_one_was(influx: InfluxServer, bucket: str, tmp_path: Path) -> None:
    journal = journal_with(tmp_path, [point(1), point(2)])
    first = Forwarder(journal, Database(address(influx, bucket)))
    first.start()
    assert first.stop(WAIT_SECONDS)
    journal.append([point(3)])
    second = Forwarder(journal, Database(address(influx, bucket)))
    second.start()
    assert second.stop(WAIT_SECONDS)
    assert (first.num_written, second.num_written) == (2, 1)
    assert influx.count("round", bucket) == 3


def test_a_crash_between_write_and_cursor_writes_over_itself(influx: InfluxServer, bucket: str, tmp_path: Path) -> None:
    journal = journal_with(tmp_path, [point(number) for number in range(20)])
    for _ in range(2):
        forwarder = Forwarder(journal, Database(address(influx, bucket)))
        forwarder.start()
        assert forwarder.stop(WAIT_SECONDS)
        journal.cursor_path.unlink()  # as if the process had died before the cursor was stored
    assert influx.count("round", bucket) == 20


def test_points_wait_while_the_database_is_down(own_influx: InfluxServer, tmp_path: Path) -> None:
    own_influx.create("b", "b_samples")
    own_influx.stop(kill=True)
    journal = journal_with(tmp_path, [point(number) for number in range(500)])
    forwarder = Forwarder(journal, Database(address(own_influx, "b")))
    forwarder.start()
    give_up_at = time.monotonic() + WAIT_SECONDS
    while not forwarder.problem:
        assert time.monotonic() < give_up_at
        time.sleep(0.02)
    assert forwarder.num_written == 0
    own_influx.start()
    wait_until_written(forwarder)
    assert forwarder.stop(WAIT_SECONDS)
    assert own_influx.count("round", "b") == 500


def test_full_disk_stops_no_points_that_are_recorded(influx: InfluxServer, bucket: str, tmp_path: Path) -> None:
    """The place reached can't be stored; it is once there is room, and nothing is written twice after a restart."""
    disk = tmp_path / "disk"
    with small_disk(disk, "256k"):
        journal = journal_with(disk, [point(1)])
        fill(disk)
        forwarder = Forwarder(journal, Database(address(influx, bucket)))
        forwarder.start()
        wait_until_written(forwarder)
        assert influx.count("round", bucket) == 1
        make_room(disk)
        journal.append([point(2)])
        assert forwarder.stop(WAIT_SECONDS)
        again = Forwarder(journal, Database(address(influx, bucket)))
        again.start()
        assert again.stop(WAIT_SECONDS)
        assert (forwarder.num_written, again.num_written) == (2, 0)
        assert influx.count("round", bucket) == 2


def test_disk_that_turns_read_only_stops_no_points_that_are_recorded(influx: InfluxServer, bucket: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "256k"):
        journal = journal_with(disk, [point(1)])
        remount(disk, "ro")
        forwarder = Forwarder(journal, Database(address(influx, bucket)))
        forwarder.start()
        wait_until_written(forwarder)
        remount(disk, "rw")
        journal.append([point(2)])
        assert forwarder.stop(WAIT_SECONDS)
        assert influx.count("round", bucket) == 2


def test_a_stop_without_a_database_is_bounded_and_loses_nothing(tmp_path: Path) -> None:
    journal = journal_with(tmp_path, [point(1)])
    nowhere = DatabaseAddress(url="http://127.0.0.1:9", token="secret")
    forwarder = Forwarder(journal, Database(nowhere))
    forwarder.start()
    assert not forwarder.stop(0.5)
    assert len(journal.read(0, 1 << 20)[0]) == 1


def test_one_point_the_database_refuses_does_not_keep_the_others_out(influx: InfluxServer, bucket: str) -> None:
    # A field that is text there already: what another program's write can do to a bucket.
    database = Database(address(influx, bucket))
    influx.query(f'CREATE DATABASE "{bucket}"', method="POST")
    poison = Point(measurement="round", tags=TAGS, fields={"loss": "high"}, time_ns=START)
    assert database.write([poison]) == {}
    good = [point(number) for number in range(1, 10)]
    bad = make_point("round", TAGS, {"loss": 1.5}, START + 100)
    assert database.write([*good[:4], bad, *good[4:]]) == {OTHER_KIND: 1}
    database.close()
    [series] = influx.query('SELECT count("accuracy") FROM "round"', database=bucket)
    assert series["values"][0][1] == 9


def test_a_missing_bucket_says_what_to_set(influx: InfluxServer) -> None:
    database = Database(address(influx, "no-such-bucket"))
    with pytest.raises(DatabaseUnavailableError, match="FEDMQ_INFLUX_BUCKET"):
        database.write([point(1)])
    database.close()
