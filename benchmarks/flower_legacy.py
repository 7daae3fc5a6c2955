"""A run of legacy Flower: its plain gRPC server and three clients that train nothing."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.peer_run import RunFigures, end, free_port, install, periods_of, private_environment
from benchmarks.rounds import WARM_UP_ROUNDS

PACKAGE = "flwr==1.11.1"
"""The last line of releases with the plain gRPC server."""

PEER = Path(__file__).with_name("flower_peer.py")
START_SECONDS = 5.0
GIVE_UP_SECONDS = 600.0


def measure_legacy(environment: Path, model_bytes: int, folder: Path, *, num_rounds: int, num_nodes: int) -> RunFigures:
    """Run `num_rounds` rounds after the warm-up and return their figures."""
    python = install(PACKAGE, environment) / "python"
    port = str(free_port())
    output = folder / "flower-legacy.json"
    total = str(num_rounds + WARM_UP_ROUNDS)
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": private_environment(folder)}
    processes = [subprocess.Popen([python, PEER, "server", port, str(num_nodes), total, str(model_bytes), output], **quiet)]
    try:
        time.sleep(START_SECONDS)
        processes += [subprocess.Popen([python, PEER, "client", port], **quiet) for _ in range(num_nodes)]
        if processes[0].wait(GIVE_UP_SECONDS) != 0:
            raise RuntimeError(f"Flower's server ended with {processes[0].returncode}")
    finally:
        end(processes)
    run = json.loads(output.read_text(encoding="utf-8"))
    return RunFigures(periods_ms=periods_of(run["times"]), peak_bytes={"server": run["peak_bytes"]})
