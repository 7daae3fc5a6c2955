"""SIGTERM and SIGINT end the shipped processes in order and within seconds, whatever they are doing and whatever the broker does."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedmq.private_broker import PrivateBroker
from tests.cli.command import fedmq
from tests.end_to_end.processes import WAIT_SECONDS, Processes, digits_run, wait_until, write_run_file

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow]

RUN = "stopping"
SIGNALS = (signal.SIGTERM, signal.SIGINT)

END_SECONDS = 10.0
"""Twice what is promised (`federation.ending`), for a machine that others keep busy; Compose kills after 30."""

LONG_EPOCHS = 500
"""Local epochs that no test waits for."""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    return write_run_file(tmp_path / "run.toml", digits_run(RUN, num_rounds=3, num_nodes=1, local_epochs=LONG_EPOCHS))


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as started:
        yield started


class Stage:
    """The processes of one run around a broker that a test may freeze."""

    def __init__(self, broker: PrivateBroker, processes: Processes, run_file: Path) -> None:
        self.broker = broker
        self.folder = run_file.parent
        self.processes = processes
        self.run_file = run_file

    def aggregator(self) -> subprocess.Popen[bytes]:
        """Start the run's aggregator."""
        return self._start("aggregator", "aggregator", FEDMQ_RUN_FILE=str(self.run_file), FEDMQ_OUT_DIR=str(self.folder / "out"))

    def guard(self) -> subprocess.Popen[bytes]:
        """Start the broker's guard."""
        return self._start("aggregator.guard", "guard")

    def _start(self, module: str, name: str, **variables: str) -> subprocess.Popen[bytes]:
        password_file = self.folder / "aggregator.password"
        password_file.write_text(self.broker.passwords["aggregator"])
        return self.processes.start(
            module,
            log=f"{name}.log",
            FEDMQ_BROKER_HOST=self.broker.host,
            FEDMQ_BROKER_PORT=str(self.broker.port),
            FEDMQ_BROKER_USERNAME="aggregator",
            FEDMQ_BROKER_PASSWORD_FILE=str(password_file),
            FEDMQ_STATE_DIR=str(self.folder / "state" / name),
            **variables,
        )

    def node(self, *, run: str = RUN) -> subprocess.Popen[bytes]:
        """Start the run's node; `run` is empty for one that looks for a run."""
        return self.processes.start_node(self.broker, "node-0", run, FEDMQ_RUN_FILE=str(self.run_file), FEDMQ_PARTITION_INDEX="0")

    def says(self, log: str, text: str) -> Callable[[], bool]:
        """Return whether a log holds a text, to be asked again and again."""
        path = self.folder / log
        return lambda: path.exists() and text in path.read_text(errors="replace")

    def ends(self, process: subprocess.Popen[bytes], number: signal.Signals, log: str) -> int:
        """Send a signal; return the exit status, the log free of tracebacks and of aborts."""
        process.send_signal(number)
        status = process.wait(END_SECONDS)
        text = (self.folder / log).read_text(errors="replace")
        assert "Traceback" not in text, text
        assert "terminate called" not in text, text
        return status


@pytest.fixture
def stage(own_mosquitto: PrivateBroker, processes: Processes, run_file: Path) -> Stage:
    return Stage(own_mosquitto, processes, run_file)


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_during_the_imports_ends_each_process_in_order(stage: Stage, number: signal.Signals) -> None:
    node, aggregator = stage.node(), stage.aggregator()
    time.sleep(0.4)  # Python itself is up after a tenth of a second, PyTorch after some
    assert stage.ends(node, number, "node-0.log") == 0
    assert stage.ends(aggregator, number, "aggregator.log") == 3


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_while_a_node_trains_is_no_abort(stage: Stage, number: signal.Signals) -> None:
    """A worker inside PyTorch was torn out of it at the interpreter's end: `terminate called without an active exception`."""
    aggregator, node = stage.aggregator(), stage.node()
    wait_until(stage.says("node-0.log", "broker=connected"), "the node's connection", [aggregator, node])
    wait_until(lambda: (stage.folder / "state" / "node-0" / RUN / "1" / "global.safetensors").exists(), "the model", [aggregator, node])
    time.sleep(1.0)  # into its training
    assert stage.ends(node, number, "node-0.log") == 0
    assert stage.ends(aggregator, number, "aggregator.log") == 3


def test_node_that_was_told_no_run_is_stopped_while_it_takes_part(stage: Stage) -> None:
    aggregator, node = stage.aggregator(), stage.node(run="")
    wait_until(lambda: (stage.folder / "state" / "node-0" / RUN / "1" / "global.safetensors").exists(), "the model", [aggregator, node])
    assert stage.ends(node, signal.SIGTERM, "node-0.log") == 0


def test_node_that_looks_for_a_run_is_stopped(stage: Stage) -> None:
    node = stage.node(run="")
    wait_until(stage.says("node-0.log", "waiting for an active run"), "its search", [node])
    assert stage.ends(node, signal.SIGTERM, "node-0.log") == 0


def test_node_leaves_a_run_that_nobody_leads_for_one_that_is_led(stage: Stage) -> None:
    """Switching runs before the first was finished stranded every device in it until somebody restarted it."""
    first, node = stage.aggregator(), stage.node(run="")
    wait_until(lambda: (stage.folder / "state" / "node-0" / RUN / "1" / "global.safetensors").exists(), "the model", [first, node])
    assert stage.ends(first, signal.SIGTERM, "aggregator.log") == 3
    login = ("--host", stage.broker.host, "--port", str(stage.broker.port), "--username", "aggregator")
    stopped = fedmq("stop", RUN, *login, "--password-file", str(stage.folder / "aggregator.password"))
    assert (stopped.status, "no aggregator leads this run" in " ".join(stopped.stdout.split())) == (0, True), stopped
    write_run_file(stage.run_file, digits_run("next", num_rounds=1, num_nodes=1))
    (stage.folder / "out").rename(stage.folder / "out-of-the-first")
    second = stage.aggregator()
    assert second.wait(WAIT_SECONDS) == 0
    assert stage.says("node-0.log", "has lost its aggregator, and run 'next' is led")()
    assert stage.ends(node, signal.SIGTERM, "node-0.log") == 0


@pytest.mark.parametrize("is_frozen", [True, False], ids=["frozen", "down"])
def test_broker_that_does_not_answer_keeps_nobody(stage: Stage, *, is_frozen: bool) -> None:
    aggregator, node, guard = stage.aggregator(), stage.node(), stage.guard()
    wait_until(
        lambda: (stage.folder / "state" / "node-0" / RUN / "1" / "global.safetensors").exists(), "the model", [aggregator, node, guard]
    )
    wait_until(stage.says("guard.log", "broker=connected"), "the guard's connection", [guard])
    if is_frozen:
        assert stage.broker.process_id is not None
        os.kill(stage.broker.process_id, signal.SIGSTOP)
    else:
        stage.broker.kill()
        wait_until(stage.says("aggregator.log", "broker=disconnected"), "the loss of the broker", [aggregator])
    try:
        for process in (aggregator, node, guard):
            process.send_signal(signal.SIGTERM)
        assert [process.wait(END_SECONDS) for process in (aggregator, node, guard)] == [3, 0, 0]
    finally:
        if is_frozen:
            os.kill(stage.broker.process_id or 0, signal.SIGCONT)
