"""Full and read-only disks under the shipped processes: a sentence, a status, and never a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedmq.private_broker import PrivateBroker
from tests.end_to_end.processes import Processes, clean_environment, digits_run, wait_until, write_run_file
from tests.small_disk import fill, remount, small_disk

pytestmark = pytest.mark.slow

START_SECONDS = 120.0


@pytest.mark.parametrize("on_small_disk", ["state", "out"])
def test_aggregator_that_starts_on_a_full_disk_ends_with_a_sentence(tmp_path: Path, on_small_disk: str) -> None:
    folders = {"state": tmp_path / "state", "out": tmp_path / "out"}
    disk = folders[on_small_disk]
    with small_disk(disk, "1m"):
        fill(disk)
        environment = clean_environment(
            FEDMQ_RUN_FILE=str(write_run_file(tmp_path / "run.toml", digits_run("full", num_rounds=1, num_nodes=1))),
            FEDMQ_STATE_DIR=str(folders["state"]),
            FEDMQ_OUT_DIR=str(folders["out"]),
            FEDMQ_BROKER_HOST="127.0.0.1",
            FEDMQ_BROKER_PORT="1",
        )
        ended = subprocess.run(
            [sys.executable, "-m", "aggregator"], env=environment, capture_output=True, text=True, timeout=START_SECONDS, check=False
        )
    assert ended.returncode == 1
    assert "the disk failed ([Errno 28] No space left on device" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr


def test_node_on_a_read_only_disk_stays_and_says_so(mosquitto: PrivateBroker, tmp_path: Path, run_name: str) -> None:
    """It has a broker, and no run yet; its health check sees the file that is not touched."""
    disk = tmp_path / "state" / "node-0"
    with small_disk(disk, "8m"), Processes(tmp_path) as processes:
        remount(disk, "ro")
        node = processes.start_node(mosquitto, "node-0", run_name, FEDMQ_DATA="digits")
        log = tmp_path / "node-0.log"
        wait_until(lambda: "broker=connected" in log.read_text() and "heartbeat=unwritable" in log.read_text(), "the node's words", [node])
        node.terminate()
        assert node.wait(START_SECONDS) == 0
        assert "Traceback" not in log.read_text()
