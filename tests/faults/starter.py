"""Starts the shipped `__main__`s: with `python -m`, or from a process that has done their imports once.

Importing PyTorch and what stands on it costs 4.5 s of CPU a process; a schedule starts a dozen. The warm starter forks, gives the
child its environment, log and session, and runs the module as `__main__` to the interpreter's very end. What it leaves out is the
time before `main` begins; tests of signals during the imports start cold.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

INSTRUMENT = Path(__file__).resolve().parent / "instrument"
ROOT = Path(__file__).resolve().parents[2]

PRELOADED = (
    "aggregator.run_process",
    "aggregator.guard",
    "edge_node.node_process",
    "sklearn.datasets",
    "onnx",
    "onnxruntime",
    "torch.onnx",
)
"""What the shipped modules import, at the top or when they first need it."""

WARM_UP_SECONDS = 120.0


class Started(Protocol):
    """A process as its starter sees it; `subprocess.Popen` is one."""

    @property
    def pid(self) -> int:
        """Its number."""
        ...

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        ...

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status once it has ended."""
        ...

    def send_signal(self, sig: int, /) -> None:
        """Send a signal, if it lives."""
        ...

    def kill(self) -> None:
        """End it with SIGKILL."""
        ...


class Starter(Protocol):
    """Starts modules."""

    def start(self, module: str, environment: Mapping[str, str], log: Path) -> Started:
        """Start a module, its output appended to `log`."""
        ...


def instrumented(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which tests/faults/instrument is installed at the start."""
    return {**environment, "PYTHONPATH": f"{INSTRUMENT}{os.pathsep}{ROOT}", "PYTHONUNBUFFERED": "1"}


class ColdStarter:
    """Starts `python -m MODULE`, as Compose does."""

    def start(self, module: str, environment: Mapping[str, str], log: Path) -> Started:
        """Start a module, its output appended to `log`."""
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", module],
                env=instrumented(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )


class WarmProcess:
    """A child of the warm starter."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ended = threading.Event()
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status once it has ended."""
        if not self.ended.wait(timeout) or self.returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        return self.returncode

    def send_signal(self, sig: int, /) -> None:
        """Send a signal, if it lives."""
        if self.returncode is None:
            try:
                os.kill(self.pid, sig)
            except ProcessLookupError:
                return

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.send_signal(signal.SIGKILL)


class WarmStarter:
    """Forks modules whose imports are done; a context manager that ends what it started."""

    def __init__(self) -> None:
        self._children: dict[int, WarmProcess] = {}
        self._started: list[int] = []
        self._has_ended = False
        self._changed = threading.Condition()
        environment = instrumented({key: value for key, value in os.environ.items() if not key.startswith("FEDMQ_")})
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.starter"],
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._listen, name="starter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for child in self._children.values():
            child.kill()
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(WARM_UP_SECONDS)
        self._thread.join(WARM_UP_SECONDS)
        if self._server.stdout is not None:
            self._server.stdout.close()

    def start(self, module: str, environment: Mapping[str, str], log: Path) -> Started:
        """Start a module, its output appended to `log`."""
        request = {"module": module, "environment": instrumented(environment), "log": str(log)}
        assert self._server.stdin is not None
        with self._changed:
            self._server.stdin.write(json.dumps(request).encode() + b"\n")
            self._server.stdin.flush()
            assert self._changed.wait_for(lambda: self._started or self._has_ended, WARM_UP_SECONDS), "the warm starter does not answer"
            assert self._started, "the warm starter has ended"
            return self._children[self._started.pop()]

    def _listen(self) -> None:
        assert self._server.stdout is not None
        for line in self._server.stdout:
            answer = json.loads(line)
            with self._changed:
                if "started" in answer:
                    self._children[answer["started"]] = WarmProcess(answer["started"])
                    self._started.append(answer["started"])
                else:
                    child = self._children.pop(answer["ended"])
                    child.returncode = answer["status"]
                    child.ended.set()
                self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()


def _serve() -> dict[str, Any] | None:
    """Fork a child for each request; return the request in the child, None when the requests have ended."""
    for name in PRELOADED:
        __import__(name)
    del sys.modules["aggregator.guard"]  # it is run, not imported
    # A child that looks through these objects would copy their pages, as it ends above all.
    gc.collect()
    gc.freeze()
    wake_up, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    pending = b""
    while True:
        readable, _, _ = select.select([0, wake_up], [], [])
        if wake_up in readable:
            os.read(wake_up, 1024)
            _report_ends()
        if 0 not in readable:
            continue
        data = os.read(0, 65_536)
        if not data:
            return None
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(wake_up)
                os.close(waker)
                request: dict[str, Any] = json.loads(line)
                return request
            _answer({"started": pid})


def _report_ends() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _answer({"ended": pid, "status": os.waitstatus_to_exitcode(status)})


def _answer(answer: Mapping[str, int]) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def _become(request: Mapping[str, Any]) -> None:
    """Take on what a process is given at its start, and run the module."""
    os.setsid()
    os.environ.clear()
    os.environ.update(request["environment"])
    null, log = os.open(os.devnull, os.O_RDONLY), os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for source, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(null)
    os.close(log)
    sys.argv = [request["module"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if (todo := _serve()) is not None:
        _become(todo)
    else:
        deadline = time.monotonic() + 10.0
        while time.monotonic() < deadline:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                break
