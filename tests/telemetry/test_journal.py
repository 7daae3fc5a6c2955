"""metrics.jsonl holds every point once, whatever ends the process."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from aggregator.journal import Journal
from federation.metrics import Point, make_point

TAGS = {"run": "r", "strategy": "fedavg"}


def point(number: int, *, measurement: str = "round", field: str = "seconds") -> Point:
    """Return a point of that time."""
    tags = TAGS | ({"node": "node-0"} if measurement == "device" else {})
    return make_point(measurement, tags, {field: float(number)}, number)


def opened(tmp_path: Path, *, is_resumed: bool = True, max_bytes: int = 1 << 20) -> Journal:
    """Return a journal ready for use."""
    journal = Journal(tmp_path / "metrics.jsonl", max_bytes=max_bytes)
    journal.open(is_resumed=is_resumed)
    return journal


def test_a_point_sent_twice_is_recorded_once_also_by_a_later_process(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    assert journal.append([point(1), point(2), point(1)]) == 2
    assert journal.append([point(2), point(3)]) == 1
    assert opened(tmp_path).append([point(2), point(3), point(4)]) == 1
    points, end = journal.read(0, 1 << 20)
    assert [entry.time_ns for entry in points] == [1, 2, 3, 4]
    assert end == journal.path.stat().st_size


def test_a_new_run_starts_anew(tmp_path: Path) -> None:
    opened(tmp_path).append([point(1)])
    journal = opened(tmp_path, is_resumed=False)
    assert journal.size == 0
    assert journal.append([point(1)]) == 1


def test_a_line_torn_by_a_crash_is_dropped_and_the_rest_kept(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.append([point(1), point(2)])
    with journal.path.open("ab") as file:
        file.write(point(3).to_line().encode()[:40])
    again = opened(tmp_path)
    again.append([point(3)])
    assert [entry.time_ns for entry in again.read(0, 1 << 20)[0]] == [1, 2, 3]


def test_reading_in_small_pieces_gives_the_same(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.append([point(number) for number in range(50)])
    offset, times = 0, []
    while offset < journal.size:
        points, offset = journal.read(offset, 300)
        times += [entry.time_ns for entry in points]
    assert times == list(range(50))


def test_beyond_the_bound_samples_go_first_and_the_oldest_stay(tmp_path: Path) -> None:
    journal = opened(tmp_path, max_bytes=1000)
    journal.append([point(number, measurement="device", field="cpu") for number in range(5)])
    while journal.size < 1000:
        journal.append([point(journal.size)])
    assert journal.append([point(1, measurement="device", field="memory_used")]) == 0
    assert journal.append([point(10**6)]) == 1
    for number in range(10**7, 10**7 + 100):
        journal.append([point(number)])
    assert 2000 <= journal.size <= 2000 + 200
    assert journal.num_dropped > 50
    assert [entry.time_ns for entry in journal.read(0, 1 << 20)[0]][:5] == list(range(5))


def test_a_large_file_that_was_read_is_set_aside(tmp_path: Path) -> None:
    journal = opened(tmp_path, max_bytes=1000)
    journal.append([point(1)])
    assert not journal.set_aside(journal.size)
    journal.append([point(number) for number in range(2, 8)])
    assert not journal.set_aside(0)
    assert journal.set_aside(journal.size)
    assert journal.size == 0
    assert len(journal.previous_path.read_text().splitlines()) == 7
    assert journal.append([point(3), point(9)]) == 1


def test_threads_do_not_tear_each_others_lines(tmp_path: Path) -> None:
    journal = opened(tmp_path)

    def write(start: int) -> None:
        for number in range(200):
            journal.append([point(start + number)])

    threads = [threading.Thread(target=write, args=(10_000 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(journal.read(0, 1 << 20)[0]) == 800


def test_a_full_disk_is_an_error_and_leaves_whole_lines() -> None:
    device = Path("/dev/full")
    if not device.exists():
        pytest.skip("needs /dev/full")
    journal = Journal(device)
    with pytest.raises(OSError, match="No space"):
        journal.append([point(1)])
    assert journal.num_recorded == 0
