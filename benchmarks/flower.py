"""FedMQ's round beside Flower's on this machine: `scripts/bench flower`.

Both train nothing, with three node processes and the same model size, one after the other, several times in
turn. Flower is installed into a throw-away environment of its own (its pins and ours do not mix). It is the last
line of releases with the plain gRPC server; no broker, nothing on disk, no digests.
"""

from __future__ import annotations

import argparse
import itertools
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.round_process import MODELS
from benchmarks.rounds import WARM_UP_ROUNDS, measure

FLOWER = "flwr==1.11.1"
PEER = Path(__file__).with_name("flower_peer.py")
START_SECONDS = 5.0
GIVE_UP_SECONDS = 600.0


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; return 0."""
    parser = argparse.ArgumentParser(prog="scripts/bench flower", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    figures = []
    with tempfile.TemporaryDirectory(prefix="fedmq-flower-") as scratch:
        python = install_flower(Path(scratch) / "venv")
        for model, num_rounds in (("simple_cnn", 40), ("resnet18", 8)):
            ours, theirs = [], []
            for _ in range(options.repeats):
                ours.append(measure(model, num_rounds=num_rounds, num_nodes=options.nodes))
                theirs.append(measure_flower(python, MODELS[model], Path(scratch), num_rounds=num_rounds, num_nodes=options.nodes))
            row = {
                "model": model,
                "fedmq_ms": statistics.median(run["median_ms"] for run in ours),
                "flower_ms": statistics.median(run["median_ms"] for run in theirs),
                "fedmq_peak_megabytes": statistics.median(run["peak_megabytes"] for run in ours),
                "flower_peak_megabytes": statistics.median(run["peak_megabytes"] for run in theirs),
                "flower": theirs[0]["version"],
            }
            figures.append(row)
            print(
                f"{model} ({MODELS[model] / 1e6:.2f} MB, {options.nodes} nodes, median of {options.repeats} runs): "
                f"FedMQ {row['fedmq_ms']:.1f} ms, Flower {row['flower']} {row['flower_ms']:.1f} ms, "
                f"ratio {row['fedmq_ms'] / row['flower_ms']:.2f}; server's peak memory FedMQ {row['fedmq_peak_megabytes']:.0f} MB, "
                f"Flower {row['flower_peak_megabytes']:.0f} MB, ratio {row['fedmq_peak_megabytes'] / row['flower_peak_megabytes']:.2f}"
            )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


def install_flower(folder: Path) -> Path:
    """Install Flower into a new environment; return its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", FLOWER], check=True)
    return python


def measure_flower(python: Path, model_bytes: int, folder: Path, *, num_rounds: int, num_nodes: int) -> dict[str, Any]:
    """Return the median round and the server's peak memory of one Flower run."""
    port = _free_port()
    output = folder / "flower.json"
    total = str(num_rounds + WARM_UP_ROUNDS)
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([python, PEER, "server", port, str(num_nodes), total, str(model_bytes), output], **quiet)
    processes = [server]
    try:
        time.sleep(START_SECONDS)
        processes += [subprocess.Popen([python, PEER, "client", port], **quiet) for _ in range(num_nodes)]
        if server.wait(GIVE_UP_SECONDS) != 0:
            raise RuntimeError(f"Flower's server ended with {server.returncode}")
    finally:
        for process in processes:
            process.terminate()
            process.wait()
    run = json.loads(output.read_text(encoding="utf-8"))
    periods = [(later - earlier) * 1e3 for earlier, later in itertools.pairwise(run["times"])][WARM_UP_ROUNDS - 1 :]
    return {"median_ms": statistics.median(periods), "peak_megabytes": run["peak_bytes"] / 1e6, "version": run["version"]}


def _free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
