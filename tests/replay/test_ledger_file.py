"""The ledger on disk: a line a change, whole after any crash, and no larger than what it says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aggregator.ledger_file import COMPACT_LINES, KeptRound, LedgerFile
from aggregator.retention import NUM_CLEARED_AGAIN, Retention
from federation.errors import CheckpointError


def kept(number: int) -> KeptRound:
    return KeptRound(result_digest=f"{number:064x}", num_bytes=1000, num_chunks={"global": 1, "updates/n0": 1})


def test_what_was_written_is_read_again_in_order(tmp_path: Path) -> None:
    ledger = LedgerFile(tmp_path / "retained.jsonl")
    ledger.write({2: kept(2), 1: kept(1)})
    ledger.write({1: None, 3: kept(3)})
    assert LedgerFile(tmp_path / "retained.jsonl").rounds == {2: kept(2), 3: kept(3)}


@pytest.mark.parametrize("num_bytes_lost", [1, 30, 150])
def test_a_line_cut_off_by_a_power_cut_is_a_change_that_never_was(tmp_path: Path, num_bytes_lost: int) -> None:
    path = tmp_path / "retained.jsonl"
    ledger = LedgerFile(path)
    ledger.write({1: kept(1)})
    ledger.write({2: kept(2)})
    os.truncate(path, path.stat().st_size - num_bytes_lost)
    resumed = LedgerFile(path)
    assert resumed.rounds == {1: kept(1)}
    resumed.write({3: kept(3)})
    assert LedgerFile(path).rounds == {1: kept(1), 3: kept(3)}


def test_other_damage_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "retained.jsonl"
    LedgerFile(path).write({1: kept(1), 2: kept(2)})
    path.write_bytes(path.read_bytes().replace(b"num_bytes", b"num_bites", 1))
    with pytest.raises(CheckpointError, match=r"damaged: line 1 is no round; delete it, and older rounds stay on the broker"):
        LedgerFile(path)


def test_a_failed_write_leaves_ledger_and_file_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "retained.jsonl"
    ledger = LedgerFile(path)
    ledger.write({1: kept(1)})
    before = path.read_bytes()

    def fail(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            ledger.write({2: kept(2)})
    assert (ledger.rounds, path.read_bytes()) == ({1: kept(1)}, before)
    ledger.write({2: kept(2)})
    assert LedgerFile(path).rounds == {1: kept(1), 2: kept(2)}


def test_two_thousand_rounds_leave_a_ledger_of_those_within_the_budget(tmp_path: Path) -> None:
    """Kept, cleared, forgotten: neither memory nor the file grows with the length of the run."""
    path = tmp_path / "retained.jsonl"
    retention = Retention(path, budget_bytes=10_000)
    largest = 0
    for number in range(1, 2001):
        retention.add(number, kept(number))
        retention.begin_clearing()
        for cleared in retention.clearing():
            retention.finish_clearing(cleared)
        largest = max(largest, path.stat().st_size)
    assert retention.num_bytes == 10_000
    rounds = LedgerFile(path).rounds
    assert [number for number, entry in rounds.items() if entry.stage == "kept"] == list(range(1991, 2001))
    assert [number for number, entry in rounds.items() if entry.stage == "cleared"] == list(range(1991 - NUM_CLEARED_AGAIN, 1991))
    line = path.stat().st_size / max(1, len(path.read_bytes().splitlines()))
    assert largest <= (COMPACT_LINES + 4 * (10 + NUM_CLEARED_AGAIN + 2) + 8) * 1.2 * line
