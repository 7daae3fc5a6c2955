"""metrics.jsonl holds every point once, whatever ends the process."""

from __future__ import annotations

import errno
import threading
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from aggregator.journal import SCAN_BYTES, Journal
from federation.metrics import Point, make_point
from tests.small_disk import fill, make_room, small_disk

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


def is_taken(journal: Journal, points: list[Point]) -> bool:
    """Record points; return whether there was room."""
    try:
        journal.append(points)
    except OSError as error:
        assert error.errno == errno.ENOSPC  # noqa: PT017
        return False
    return True


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


def test_disk_that_fills_up_and_is_emptied_costs_what_was_refused_and_tears_no_line(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "64k"):
        journal = opened(disk)
        journal.append([point(1)])
        fill(disk)
        number = 1
        while is_taken(journal, [point(number + 1), point(10**6 + number + 1)]):
            number += 1
        assert journal.path.stat().st_size == journal.size
        make_room(disk)
        assert journal.append([point(number + 1)]) == 1
        assert journal.path.read_bytes().count(b"\n") == journal.num_recorded == 2 * number
        assert [entry.time_ns for entry in journal.read(0, 1 << 20)[0]][-1] == number + 1


def test_what_a_failing_disk_keeps_of_refused_points_is_neither_read_nor_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes a line and a half of two points, and then can't even cut them off."""
    journal = opened(tmp_path)
    journal.append([point(1)])

    class FailingFile(FileIO):
        def write(self, data: Any) -> int:
            super().write(bytes(data)[: len(data) * 3 // 4])
            raise OSError(errno.EIO, "Input/output error")

        def truncate(self, size: int | None = None) -> int:  # noqa: ARG002
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, _mode, buffering: FailingFile(path, "ab"))  # noqa: ARG005
        with pytest.raises(OSError, match="Input/output"):
            journal.append([point(2), point(3)])
    assert journal.path.stat().st_size > journal.size
    points, offset = journal.read(0, 1 << 20)
    assert ([entry.time_ns for entry in points], offset) == ([1], journal.size)
    journal.append([point(3)])
    assert [entry.time_ns for entry in journal.read(0, 1 << 20)[0]] == [1, 3]
    assert journal.path.stat().st_size == journal.size


def test_zeros_at_the_end_after_a_power_cut_are_dropped(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.append([point(1)])
    whole = journal.size
    with journal.path.open("ab") as file:
        file.write(bytes(2 * SCAN_BYTES + 17))
    again = opened(tmp_path)
    assert again.size == again.path.stat().st_size == whole
    again.append([point(2)])
    assert [entry.time_ns for entry in again.read(0, 1 << 20)[0]] == [1, 2]


def test_a_crash_while_the_file_is_set_aside_skips_nothing(tmp_path: Path) -> None:
    """The place kept for the old file must not be taken for one in the new file."""
    journal = opened(tmp_path, max_bytes=1000)
    journal.append([point(number) for number in range(1, 9)])
    journal.cursor_path.write_text(f'{{"offset": {journal.size}}}')
    assert journal.set_aside(journal.size)
    assert not journal.cursor_path.exists()
