"""The aggregator's disk after a power cut: at whatever sync it comes, the run goes on to the same model and loses no round."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from aggregator.archive import Archive
from aggregator.checkpoint import write_atomically
from aggregator.replay import Replay
from tests.machines.federation_pair import FederationPair
from tests.machines.test_federation import expected_digest
from tests.power_cut import Disk, PowerLost

NUM_ROUNDS = 3
STRIDE = 29
"""Every so manieth sync of a run: each kind of step comes in turn."""

NUM_OFFSETS = 4
"""How many of the offsets are tried: about a seventh of the moments. All of them take 38 s of a processor."""


class Machine(FederationPair):
    """A federation whose aggregator has a disk of its own, which a power cut takes back to what was synced."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(folder, num_rounds=NUM_ROUNDS)
        self.root = folder / "server"
        self.root.mkdir()
        for name in ("aggregator", "out"):
            (self.root / name).mkdir()
            (folder / name).symlink_to(self.root / name)
        self.disk = Disk(self.root, monkeypatch)

    def step(self) -> bool:
        """Take a little time, so that rounds end at different ones."""
        self.now += 0.001
        return super().step()

    def run_with_cut(self, num_syncs: int) -> bool:
        """Run to the end, through a power cut before that sync; return whether it came."""
        self.disk.cut_at(num_syncs)
        try:
            self.start()
            self.run()
        except PowerLost:
            self.disk.cut_at(None)
            self.kill("aggregator")
            self.disk.restore()
            self.start_aggregator(is_resuming=True)
            for node in self.nodes:
                if self.seats[node].service is None:
                    self.start_node(node)
            self.run()
            return True
        return False

    def check(self) -> None:
        """Raise unless the run ended whole, on disk too."""
        assert self.global_digest == expected_digest(num_rounds=NUM_ROUNDS)
        archive = Archive(self.folder / "out" / "rounds")
        results = [record.result for record in Replay("pair", archive, None).verify(range(1, NUM_ROUNDS + 1))]
        assert [result.accepted for result in results] == [3] * NUM_ROUNDS
        summary = json.loads((self.folder / "out" / "summary.json").read_bytes())
        assert [entry["round_number"] for entry in summary["rounds"]] == [1, 2, 3]
        assert summary["final"]["accuracy"] == 0.5
        points = [json.loads(line) for line in (self.folder / "out" / "metrics.jsonl").read_text().splitlines()]
        times = {point["fields"]["round_number"]: point["time_ns"] for point in points if point["measurement"] == "round"}
        assert times == {result.round_number: result.ended_ns for result in results}
        counted = Counter((point["fields"]["round_number"], point["measurement"]) for point in points)
        assert [(counted[number, "round"], counted[number, "outcome"]) for number in (1, 2, 3)] == [(1, 3)] * 3


@pytest.mark.parametrize("first", range(0, STRIDE, STRIDE // NUM_OFFSETS + 1))
def test_power_cut_at_any_sync_costs_the_run_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    """The broker keeps what it acknowledged; what the aggregator has never synced is gone, summary and points among it."""
    num_syncs, has_cut = first, True
    while has_cut:
        folder = tmp_path / str(num_syncs)
        folder.mkdir()
        machine = Machine(folder, monkeypatch)
        has_cut = machine.run_with_cut(num_syncs)
        machine.check()
        machine.disk.close()
        shutil.rmtree(folder)
        num_syncs += STRIDE


def test_name_of_a_file_that_is_replaced_durably_survives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    folder = root / "folder"
    folder.mkdir()
    disk = Disk(root, monkeypatch)
    write_atomically(folder / "position", b"1", durable=True)
    write_atomically(folder / "position", b"2")
    disk.restore()
    assert (folder / "position").read_bytes() == b"1"
