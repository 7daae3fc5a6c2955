"""FedMQ's commands and containers as processes, for tests that start, watch, signal and kill them.

A test ends only what it started: `Processes` by process id, `descendants` by the tree under one of these.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import tomli_w

from fedmq.private_broker import PrivateBroker
from tests.brokers.ejabberd import EjabberdBroker

WAIT_SECONDS = 120.0
"""Every wait's end on a machine that others keep busy; a test that reaches it has failed."""

POLL_SECONDS = 0.02


def clean_environment(**variables: str) -> dict[str, str]:
    """Return this process's environment without FEDMQ_ variables, plus these."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FEDMQ_")}
    # Output as a wide terminal without colours shows it, whatever terminal the tests run in.
    return {**inherited, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200", **variables}


class Processes:
    """Processes of one test; a context manager that ends those still running."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._started:
            if process.poll() is None:
                process.terminate()
        for process in self._started:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, module: str, *arguments: str | Path, log: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start `python -m module`, its output in `log`."""
        with (self._folder / log).open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)],
                env=clean_environment(**variables),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._started.append(process)
        return process

    def start_node(self, broker: PrivateBroker | EjabberdBroker, name: str, run: str, **variables: str) -> subprocess.Popen[bytes]:
        """Start an edge node that logs in under its own name; `variables` say which images it has."""
        password_file = self._folder / f"{name}.password"
        password_file.write_text(broker.passwords[name])
        return self.start(
            "edge_node",
            log=f"{name}.log",
            FEDMQ_NODE=name,
            FEDMQ_RUN=run,
            FEDMQ_BROKER_HOST=broker.host,
            FEDMQ_BROKER_PORT=str(broker.port),
            FEDMQ_BROKER_USERNAME=name,
            FEDMQ_BROKER_PASSWORD_FILE=str(password_file),
            FEDMQ_STATE_DIR=str(self._folder / "state" / name),
            **variables,
        )

    def start_run(self, broker: PrivateBroker | EjabberdBroker, run_file: Path, out: Path, *flags: str) -> subprocess.Popen[bytes]:
        """Start `fedmq run` against a broker."""
        password_file = self._folder / "aggregator.password"
        password_file.write_text(broker.passwords["aggregator"])
        login = ("--host", broker.host, "--port", str(broker.port), "--username", "aggregator", "--password-file", password_file)
        return self.start("fedmq.cli", "run", run_file, *login, "--out", out, *flags, log="run.log")


def wait_until(condition: Callable[[], bool], what: str, processes: Sequence[subprocess.Popen[bytes]] = ()) -> None:
    """Return once `condition` holds; fail if any of `processes` ends before, or after a long time."""
    give_up_at = time.monotonic() + WAIT_SECONDS
    while not condition():
        ended = [process.args for process in processes if process.poll() is not None]
        # Asked again: the process may have ended because what was waited for has come.
        assert not ended or condition(), f"{ended} ended while waiting for {what}"
        assert time.monotonic() < give_up_at, f"waited in vain for {what}"
        time.sleep(POLL_SECONDS)


def rounds_done(out: Path) -> int:
    """Return how many rounds a run's summary records."""
    summary = out / "summary.json"
    return len(read_json(summary)["rounds"]) if summary.exists() else 0


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def descendants(process: subprocess.Popen[bytes]) -> set[psutil.Process]:
    """Return the live processes under this one."""
    try:
        return set(psutil.Process(process.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def alive(processes: set[psutil.Process]) -> set[psutil.Process]:
    """Return those that still run: psutil tells a process from a later one of the same id."""
    return {process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE}


def write_run_file(path: Path, values: Mapping[str, Any]) -> Path:
    path.write_text(tomli_w.dumps(values), encoding="utf-8")
    return path


def digits_run(name: str, *, num_rounds: int, num_nodes: int, local_epochs: int = 1, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run file's values: scikit-learn's digits, which are everywhere, dealt evenly."""
    return {
        "run": name,
        "num_rounds": num_rounds,
        "data": {"name": "digits"},
        "partition": {"scheme": "iid", "num_nodes": num_nodes},
        "training": {"local_epochs": local_epochs, "learning_rate": 0.02, "device": "cpu"},
        "rounds": {"min_nodes": num_nodes},
        **sections,
    }
