"""A run of current Flower: one SuperLink, three SuperNodes, and an app whose clients train nothing, started by `flwr run`.

All as shipped: SuperLink's database in memory, a Python process of its own for every message a node handles, and
Flower's polling. SuperNode asks for work every 3 s, ServerApp for replies every 3 s; both stand in its code. The
one interval its documentation lets one set is SuperExec's (1 s), by `FLWR_SUPEREXEC_TASK_POLL_INTERVAL`.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.peak_memory import peaks_of_family
from benchmarks.peer_run import RunFigures, end, free_port, install, periods_of, private_environment
from benchmarks.rounds import WARM_UP_ROUNDS

PACKAGE = "flwr==1.41.0"
"""The newest release on 2026-11-23."""

PEER = Path(__file__).with_name("flower_current_peer.py")
POLL_SECONDS = 0.2
START_SECONDS = 60.0
GIVE_UP_SECONDS = 1800.0

SHORT_POLL = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05"}
"""Twentieth of the default. Flower takes 0.01 at the least, at which four SuperExecs would keep the cores busy."""

PROJECT = """\
[project]
name = "no-training"
version = "1.0.0"
description = "trains nothing"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "benchmark"

[tool.flwr.app.components]
serverapp = "flower_current_peer:server_app"
clientapp = "flower_current_peer:client_app"

[tool.flwr.app.config]
num-rounds = {num_rounds}
num-nodes = {num_nodes}
model-bytes = {model_bytes}
output-file = "{output}"
"""

CONNECTION = """\
[superlink]
default = "bench"

[superlink.bench]
address = "127.0.0.1:{port}"
insecure = true
"""


def measure_current(
    environment: Path, model_bytes: int, folder: Path, *, num_rounds: int, num_nodes: int, has_short_poll: bool
) -> RunFigures:
    """Run `num_rounds` rounds after the warm-up and return their figures."""
    programs = install(PACKAGE, environment)
    port = free_port()
    output = folder / "flower-current.json"
    output.unlink(missing_ok=True)
    app = _write_app(folder, port, output, num_rounds=num_rounds + WARM_UP_ROUNDS, num_nodes=num_nodes, model_bytes=model_bytes)
    variables = {**private_environment(folder), **(SHORT_POLL if has_short_poll else {})}
    variables["PATH"] = f"{programs}:{variables['PATH']}"
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": variables, "cwd": folder}
    superlink: list[str | Path] = [
        programs / "flower-superlink",
        "--insecure",
        "--disable-runtime-dependency-installation",
        "--port",
        str(port),
    ]
    supernode: list[str | Path] = [programs / "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port"]
    processes: list[subprocess.Popen[bytes]] = [subprocess.Popen(superlink, **quiet)]
    try:
        _wait_until_listening(port, processes[0])
        processes += [subprocess.Popen([*supernode, str(free_port())], **quiet) for _ in range(num_nodes)]
        processes.append(subprocess.Popen([programs / "flwr", "run", "--stream", app, "bench"], **quiet))
        peaks = _watch(processes[0], processes[-1])
    finally:
        end(processes)
    if not output.exists():
        raise RuntimeError("Flower's ServerApp wrote no figures: it ended early")
    run = json.loads(output.read_text(encoding="utf-8"))
    others = sum(peak for process_id, peak in peaks.items() if process_id not in (processes[0].pid, run["process_id"]))
    return RunFigures(
        periods_ms=periods_of(run["times"]),
        peak_bytes={"SuperLink": peaks[processes[0].pid], "ServerApp": run["peak_bytes"], "SuperExec": others},
    )


def _write_app(folder: Path, port: int, output: Path, *, num_rounds: int, num_nodes: int, model_bytes: int) -> Path:
    app = folder / "app"
    app.mkdir(exist_ok=True)
    shutil.copy(PEER, app)
    project = PROJECT.format(num_rounds=num_rounds, num_nodes=num_nodes, model_bytes=model_bytes, output=output)
    (app / "pyproject.toml").write_text(project, encoding="utf-8")
    (folder / "flwr").mkdir(exist_ok=True)
    (folder / "flwr" / "config.toml").write_text(CONNECTION.format(port=port), encoding="utf-8")
    return app


def _wait_until_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    give_up_at = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up_at and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(POLL_SECONDS)
    raise RuntimeError("Flower's SuperLink did not start")


def _watch(superlink: subprocess.Popen[bytes], run: subprocess.Popen[bytes]) -> dict[int, int]:
    """Wait until the run has ended; return the peaks of SuperLink and what it started."""
    peaks: dict[int, int] = {}
    give_up_at = time.monotonic() + GIVE_UP_SECONDS
    while run.poll() is None:
        if time.monotonic() > give_up_at:
            raise RuntimeError(f"Flower's run took more than {GIVE_UP_SECONDS:.0f} s")
        for process_id, peak in peaks_of_family(superlink.pid).items():
            peaks[process_id] = max(peak, peaks.get(process_id, 0))
        time.sleep(POLL_SECONDS)
    return peaks
