"""What the runs of other systems share: an environment of their own, free ports, one run's figures, the end of all processes."""

from __future__ import annotations

import itertools
import os
import socket
import statistics
import subprocess
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.rounds import WARM_UP_ROUNDS

STOP_SECONDS = 10.0
"""A process told to end gets so long, then it is killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFigures:
    """What one run of one system took.

    Args:
        periods_ms: of the rounds after the warm-up, in milliseconds.
        peak_bytes: process of the server's side -> its peak resident size.
    """

    periods_ms: Sequence[float]
    peak_bytes: Mapping[str, int]

    @property
    def median_ms(self) -> float:
        """The median round."""
        return statistics.median(self.periods_ms)

    @property
    def total_peak_bytes(self) -> int:
        """The sum of the peaks; pages two processes share count twice."""
        return sum(self.peak_bytes.values())


def periods_of(times: Sequence[float]) -> list[float]:
    """Return the milliseconds between rounds that ended at `times` (seconds), without the warm-up."""
    return [(later - earlier) * 1e3 for earlier, later in itertools.pairwise(times)][WARM_UP_ROUNDS - 1 :]


def install(package: str, folder: Path) -> Path:
    """Install `package` into an environment in `folder` unless one is there; return the folder of its programs."""
    programs = folder / "bin"
    if not (programs / "python").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", package], check=True)
    return programs


def private_environment(folder: Path) -> dict[str, str]:
    """Return environment variables under which a system writes below `folder` only and reports to nobody."""
    return {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "HOME": str(folder),
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


def free_port() -> int:
    """Return a TCP port of loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End these processes and all they started."""
    family = []
    for process in processes:
        if process.poll() is None:
            family += [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        try:
            member.terminate()
        except psutil.NoSuchProcess:
            continue
    for member in psutil.wait_procs(family, timeout=STOP_SECONDS)[1]:
        member.kill()
    for process in processes:
        process.wait()
