"""FedMQ's round beside Flower's on this machine: `scripts/bench flower`.

Every system trains and evaluates nothing, with three node processes and the same model size, one after the other,
several times in turn. Flower is installed into environments of its own (its pins and ours do not mix). What
the systems do in a round differs, and is printed with the figures:

* FedMQ: a Mosquitto between server and nodes, a checkpoint on disk after every round, every round archived, a
  SHA-256 of every chunk and model.
* Flower 1.11.1: clients on the server's own gRPC stream; no broker, nothing on disk, no digests.
* Flower 1.41.0: SuperLink with its database in memory, three SuperNodes that poll, a new Python process for every
  message, objects named by their SHA-256. Once as shipped, once with the one polling interval one may set shortened.
  Its clients add a number to the weights, as SuperLink is not sent what it has.

Memory is the sum of the peaks of the server side's processes: aggregator and Mosquitto; server; SuperLink, SuperExec and
ServerApp.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import flower_current, flower_legacy
from benchmarks.flower_current import measure_current
from benchmarks.flower_legacy import measure_legacy
from benchmarks.peak_memory import peak_bytes
from benchmarks.peer_run import RunFigures
from benchmarks.round_process import MODELS
from benchmarks.rounds import WARM_UP_ROUNDS, round_periods, run_rounds
from fedmq.private_broker import PrivateBroker

NUM_ROUNDS = {"simple_cnn": 40, "resnet18": 8}
NUM_CURRENT_ROUNDS = {"simple_cnn": 6, "resnet18": 3}
"""Fewer of current Flower, whose rounds take seconds to tens of seconds."""

FEDMQ = "FedMQ"
DIFFERENCES = {
    FEDMQ: "Mosquitto between server and nodes, checkpoint and archive on disk, SHA-256 of every chunk and model",
    flower_legacy.PACKAGE: "clients on the server's gRPC stream; no broker, nothing on disk, no digests",
    flower_current.PACKAGE: "SuperLink's database in memory, SuperNodes poll (3 s), a Python process per message, as shipped",
    f"{flower_current.PACKAGE}, short poll": "the same with FLWR_SUPEREXEC_TASK_POLL_INTERVAL=0.05 instead of 1",
}

Measure = Callable[[], RunFigures]


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; return 0."""
    parser = argparse.ArgumentParser(prog="scripts/bench flower", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=[*MODELS, "all"], default="all")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each system, in turn")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--rounds", type=int, help="of FedMQ and legacy Flower; default 40 of the small model, 8 of the large one")
    parser.add_argument("--current-rounds", type=int, help="of current Flower; default 6 of the small model, 3 of the large one")
    parser.add_argument("--environments", type=Path, help="keep Flower's environments in this folder for the next time")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    for system, difference in DIFFERENCES.items():
        print(f"{system}: {difference}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fedmq-flower-") as scratch:
        for model in MODELS if options.model == "all" else [options.model]:
            rows += compare(model, Path(scratch), options)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


def compare(model: str, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run every system in turn with one model; print and return a row each, FedMQ's first."""
    measures = _measures(model, folder, options)
    runs: dict[str, list[RunFigures]] = {system: [] for system in measures}
    loads = []
    for repeat in range(options.repeats):
        for system, measure in measures.items():
            loads.append(os.getloadavg()[0])
            runs[system].append(measure())
            print(f"{model}, run {repeat + 1} of {options.repeats}, {system}: {runs[system][-1].median_ms:.1f} ms a round", flush=True)
    print(
        f"{model} ({MODELS[model] / 1e6:.2f} MB), {options.nodes} nodes, median of {options.repeats} runs; "
        f"load of the machine {min(loads):.1f} to {max(loads):.1f} on {os.cpu_count()} cores:"
    )
    rows = [_row(model, system, figures, runs[FEDMQ]) for system, figures in runs.items()]
    for row in rows:
        peaks = " + ".join(f"{name} {megabytes:.0f}" for name, megabytes in row["peak_megabytes"].items())
        print(
            f"  {row['system']}: {row['median_ms']:.1f} ms a round ({row['num_rounds']} rounds a run; runs' medians "
            f"{', '.join(f'{median:.1f}' for median in row['runs_ms'])}), {row['times_fedmq']:.2f} times FedMQ's; "
            f"server's peak memory {row['total_peak_megabytes']:.0f} MB ({peaks})"
        )
    return [{**row, "num_nodes": options.nodes, "loads": loads} for row in rows]


def measure_fedmq(model: str, *, num_rounds: int, num_nodes: int) -> RunFigures:
    """Run `num_rounds` rounds after the warm-up and return their figures."""
    nodes = [f"node-{index}" for index in range(num_nodes)]
    with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as scratch:
        folder = Path(scratch)
        with PrivateBroker(folder / "broker", nodes=nodes) as broker:
            _, aggregator_bytes = run_rounds(broker, nodes, model, folder, num_rounds=num_rounds + WARM_UP_ROUNDS)
            broker_bytes = peak_bytes(broker.process_id or 0)
        return RunFigures(periods_ms=round_periods(folder), peak_bytes={"aggregator": aggregator_bytes, "Mosquitto": broker_bytes})


def _measures(model: str, scratch: Path, options: argparse.Namespace) -> Mapping[str, Measure]:
    environments = (options.environments or scratch).resolve()
    num_rounds = options.rounds or NUM_ROUNDS[model]
    size = {"model_bytes": MODELS[model], "folder": scratch, "num_nodes": options.nodes}
    current = partial(
        measure_current, environments / "flower-current", num_rounds=options.current_rounds or NUM_CURRENT_ROUNDS[model], **size
    )
    legacy = partial(measure_legacy, environments / "flower-legacy", num_rounds=num_rounds, **size)
    ours = partial(measure_fedmq, model, num_rounds=num_rounds, num_nodes=options.nodes)
    as_shipped, short_poll = partial(current, has_short_poll=False), partial(current, has_short_poll=True)
    return dict(zip(DIFFERENCES, (ours, legacy, as_shipped, short_poll), strict=True))


def _row(model: str, system: str, runs: Sequence[RunFigures], ours: Sequence[RunFigures]) -> dict[str, Any]:
    median_ms = statistics.median(run.median_ms for run in runs)
    return {
        "model": model,
        "model_megabytes": MODELS[model] / 1e6,
        "system": system,
        "num_rounds": len(runs[0].periods_ms),
        "median_ms": median_ms,
        "runs_ms": [run.median_ms for run in runs],
        "times_fedmq": median_ms / statistics.median(run.median_ms for run in ours),
        "total_peak_megabytes": statistics.median(run.total_peak_bytes for run in runs) / 1e6,
        "peak_megabytes": {name: statistics.median(run.peak_bytes[name] for run in runs) / 1e6 for name in runs[0].peak_bytes},
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
