"""A process that runs and does nothing useful is unhealthy, and its health check says why."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedmq.private_broker import PrivateBroker
from tests.end_to_end.processes import WAIT_SECONDS, Processes, clean_environment, digits_run, wait_until, write_run_file

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow]


def health(module: str, state_dir: Path) -> tuple[int, str]:
    """Return exit status and words of a health check."""
    command = [sys.executable, "-m", f"{module}.health"]
    environment = clean_environment(FEDMQ_STATE_DIR=str(state_dir))
    check = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)
    return check.returncode, check.stderr


def test_node_whose_images_are_unusable_is_unhealthy(mosquitto: PrivateBroker, run_name: str, tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        node = processes.start_node(mosquitto, "node-0", run_name, FEDMQ_DATA=str(tmp_path / "nowhere"))
        log = tmp_path / "node-0.log"
        wait_until(lambda: "broker=connected" in log.read_text(), "its connection", [node])
        status, words = health("edge_node", tmp_path / "state" / "node-0")
        assert status == 1
        assert "nowhere" in words
        assert not (tmp_path / "state" / "node-0" / "heartbeat").exists()


def test_aggregator_without_its_data_is_held_unhealthy_where_it_would_be_restarted_for_ever(tmp_path: Path) -> None:
    values = digits_run("held", num_rounds=1, num_nodes=1, data={"name": "not_there_at_all"})
    run_file = write_run_file(tmp_path / "run.toml", values)
    with Processes(tmp_path) as processes:
        aggregator = processes.start(
            "aggregator",
            log="aggregator.log",
            FEDMQ_BROKER_HOST="127.0.0.1",
            FEDMQ_RUN_FILE=str(run_file),
            FEDMQ_DATA_DIR=str(tmp_path),
            FEDMQ_OUT_DIR=str(tmp_path / "out"),
            FEDMQ_STATE_DIR=str(tmp_path / "state"),
            FEDMQ_HOLD="1",
        )
        log = tmp_path / "aggregator.log"
        wait_until(lambda: "event=held" in log.read_text(), "it to be held", [aggregator])
        status, words = health("aggregator", tmp_path / "state")
        assert status == 1
        assert "not_there_at_all" in words
        aggregator.send_signal(signal.SIGTERM)
        assert aggregator.wait(WAIT_SECONDS) == 3
