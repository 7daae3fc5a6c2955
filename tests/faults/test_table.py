"""Rows of docs/failures.md against real processes: what each side says when it happens."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.faults.federation import AGGREGATOR, NODES, RUN, Federation
from tests.faults.proxy import wait_until
from tests.requirements import require

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow]

WAIT_SECONDS = 90.0


@pytest.fixture(autouse=True)
def _mosquitto() -> None:
    require("mosquitto")


def wait_for_round(federation: Federation, round_number: int) -> None:
    def is_there() -> bool:
        federation.look_after()
        return federation.round_number >= round_number

    wait_until(is_there, timeout_seconds=WAIT_SECONDS, what=f"round {round_number}")


def wait_for_line(federation: Federation, name: str, text: str, count: int) -> None:
    wait_until(lambda: federation.log(name).count(text) >= count, timeout_seconds=WAIT_SECONDS, what=f"{text!r} in {name}'s log")


def test_late_node_takes_part_from_the_next_round(tmp_path: Path) -> None:
    with Federation(tmp_path, num_rounds=4, train_seconds=0.3, rounds={"min_nodes": 2}) as federation:
        federation.start([AGGREGATOR, "node-0", "node-1"])
        wait_for_round(federation, 2)
        federation.start(["node-2"])
        federation.wait(WAIT_SECONDS)
        cohorts = [[outcome.node for outcome in result.outcomes] for result in federation.replay("broker")]
    assert cohorts[0] == ["node-0", "node-1"]
    assert cohorts[-1] == list(NODES)


def test_flapping_node_costs_nothing_but_time(tmp_path: Path) -> None:
    """Ten reconnections in one round."""
    with Federation(tmp_path, num_rounds=2, train_seconds=6.0) as federation:
        federation.start()
        wait_for_round(federation, 1)
        for count in range(1, 11):
            federation.proxies["node-1"].cut()
            wait_for_line(federation, "node-1", "event=connected", count + 1)
        federation.wait(WAIT_SECONDS)
        assert [result.accepted for result in federation.replay("broker")] == [3, 3]


def test_two_processes_with_one_identity_are_told(tmp_path: Path) -> None:
    with Federation(tmp_path, num_rounds=3, train_seconds=1.0) as federation:
        federation.start()
        wait_for_round(federation, 1)
        first = federation.parts["node-1"].process
        assert first is not None
        federation.start_part(federation.parts["node-1"])
        assert first.wait(WAIT_SECONDS) == 1
        federation.wait(WAIT_SECONDS)
        assert "another client connected to the broker with this identity" in federation.log("node-1")
        assert "node=node-1 another process has this identity" in federation.log(AGGREGATOR)
        assert [result.accepted for result in federation.replay("broker")] == [3, 3, 3]


def test_zombie_aggregator_stops_itself_and_its_successor_leads_on(tmp_path: Path) -> None:
    with Federation(tmp_path, num_rounds=5, train_seconds=0.4) as federation:
        federation.start()
        wait_for_round(federation, 2)
        zombie = federation.parts[AGGREGATOR].process
        assert zombie is not None
        zombie.send_signal(signal.SIGSTOP)
        federation.start_part(federation.parts[AGGREGATOR])
        wait_for_round(federation, 4)
        zombie.send_signal(signal.SIGCONT)
        assert zombie.wait(WAIT_SECONDS) == 1
        federation.wait(WAIT_SECONDS)
        assert "another aggregator leads this run" in federation.log(AGGREGATOR)
        assert len(federation.replay("broker")) == len(federation.replay("archive")) == 5


def test_full_disk_is_said_in_the_nodes_status_and_the_run_goes_on(tmp_path: Path) -> None:
    """A tmpfs too small for a round; the other two make the quorum."""
    small = tmp_path / "node-2"
    small.mkdir(parents=True)
    mount = shutil.which("mount")
    mounted = mount is not None and subprocess.run([mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], check=False).returncode == 0
    if not mounted:
        pytest.skip("needs the right to mount a tmpfs: run as root")
    try:
        with Federation(tmp_path, num_rounds=2, rounds={"min_nodes": 2, "quorum": 0.6, "grace_seconds": 0.5}) as federation:
            federation.start()
            federation.wait(WAIT_SECONDS)
            assert "disk full" in federation.log(AGGREGATOR)
            assert [result.accepted for result in federation.replay("broker")] == [2, 2]
    finally:
        subprocess.run(["umount", small], check=True)


def test_slow_link_with_cuts_finishes_its_rounds_and_sends_little_twice(tmp_path: Path) -> None:
    """256 kbit/s, 300 ms round trip, a cut every 20 s: the model takes 20 s each way, so every transfer is cut once."""
    with Federation(tmp_path, num_rounds=1, rounds={"deadline_seconds": 280.0}) as federation:
        link = federation.proxies["node-0"]
        link.link.bytes_per_second, link.link.delay_seconds = 32_000.0, 0.15
        federation.parts["node-0"].options += ["--keep-alive-seconds", "30"]
        federation.start()
        cut_at, num_cuts = time.monotonic() + 20.0, 0
        while not federation.is_over:
            if time.monotonic() >= cut_at:
                link.cut()
                cut_at, num_cuts = cut_at + 20.0, num_cuts + 1
            federation.look_after()
            time.sleep(0.05)
        federation.wait(WAIT_SECONDS)
        assert num_cuts >= 2
        assert [result.accepted for result in federation.replay("broker")] == [3]
        # The model of the round, the update, and the final model.
        model = federation.folder / "aggregator" / RUN / "globals" / f"{federation.global_digest}.safetensors"
        payload_bytes = 3 * model.stat().st_size
        assert sum(link.carried_bytes.values()) <= 1.1 * payload_bytes
