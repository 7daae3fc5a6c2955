"""The demo's processes: one aggregator and its edge nodes, each with a password and a signing key of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from federation.errors import FedMQError
from fedmq.certificates import create_signing_pair

STOP_SECONDS = 15.0
"""How long the processes may take to stop before they are killed."""

LOG_LINES = 20


class DemoProcesses:
    """The demo's own processes; a context manager that ends them, and only them.

    Args:
        logs: what each of them says goes to NAME.log here, after what it said when the run was begun.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        processes = self._processes.values()
        for process in processes:
            if process.poll() is None:
                process.terminate()
        give_up_at = time.monotonic() + STOP_SECONDS
        # A second Ctrl-C means: at once.
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            for process in processes:
                process.wait(max(0.0, give_up_at - time.monotonic()))
        for process in processes:
            process.kill()
            process.wait()

    def start(self, name: str, module: str, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start `python -m module` with these variables and none of our own `FEDMQ_` ones."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("FEDMQ_")}
        # One core per process: more threads only make small batches slower (docs/architecture.md).
        environment = {**inherited, "OMP_NUM_THREADS": "1", **variables}
        with (self._logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches us alone; we stop the others in order.
                start_new_session=True,
            )
        self._processes[name] = process
        return process

    def check(self, names: Sequence[str]) -> None:
        """Raise when one of these processes has failed."""
        for name in names:
            if self._processes[name].poll() not in {None, 0}:
                self._raise(name)

    def wait(self, names: Sequence[str], seconds: float) -> None:
        """Wait until these processes have ended by themselves."""
        give_up_at = time.monotonic() + seconds
        for name in names:
            try:
                self._processes[name].wait(max(0.0, give_up_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise FedMQError(f"{name} did not finish within {seconds:.0f} s of the run's end; see {self._logs / name}.log") from None
        self.check(names)

    def _raise(self, name: str) -> None:
        log = self._logs / f"{name}.log"
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])
        raise FedMQError(f"{name} failed with exit status {self._processes[name].returncode}; the end of {log}:\n{tail}")


def make_keys(folder: Path, trusted: Path, names: Sequence[str]) -> dict[str, Path]:
    """Make everyone a signing key who has none yet; the public ones stay with the results, for `fedmq replay`."""
    trusted.mkdir(exist_ok=True)
    keys = {}
    for name in names:
        keys[name] = folder / f"{name}.signing.key"
        if keys[name].exists():
            continue
        pair = create_signing_pair()
        (trusted / f"{name}.pub").write_bytes(pair.public)
        keys[name].touch(mode=0o600)
        keys[name].write_bytes(pair.private)
    return keys


def login(folder: Path, user: str, password: str) -> dict[str, str]:
    """Write a user's password into a file of its own; return the variables that name both."""
    path = folder / f"{user}.password"
    path.touch(mode=0o600)
    path.write_text(password, encoding="utf-8")
    return {"FEDMQ_BROKER_USERNAME": user, "FEDMQ_BROKER_PASSWORD_FILE": str(path)}
