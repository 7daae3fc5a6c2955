"""What a round costs beside training: `scripts/bench rounds`.

Three node processes that train nothing, one aggregator process that evaluates nothing, a private Mosquitto on
loopback. Beside it, in the same run, the floor: the same bytes to three bare paho clients and back, with no
chunks, digests, checks, files or durability. The ratio of the two is what the protocol's promises cost.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peak_memory import peak_bytes
from benchmarks.round_process import MODELS
from federation.broker_address import BrokerAddress
from federation.mqtt import MqttTransport
from federation.transport import Connected, Delivered, TransportEvent
from fedmq.private_broker import AGGREGATOR, PrivateBroker

POLL_SECONDS = 0.01
GIVE_UP_SECONDS = 300.0
WARM_UP_ROUNDS = 2

TARGETS = {"simple_cnn": "40 ms", "resnet18": "1,500 ms"}
"""Of the median round; legacy Flower without a broker took 16 and 1,800 ms on a two-core machine."""

TARGET_MODELS = 3
"""Memory above idle, in models, whatever the number of nodes; of a small model, the megabytes say more."""

LARGE_BYTES = 10_000_000


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; return 0."""
    parser = argparse.ArgumentParser(prog="scripts/bench rounds", description=__doc__)
    parser.add_argument("--model", choices=[*MODELS, "all"], default="all")
    parser.add_argument("--rounds", type=int, default=None, help="default 40 of the small model, 8 of the large one")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    figures = []
    for model in MODELS if options.model == "all" else [options.model]:
        num_rounds = options.rounds or {"simple_cnn": 40, "resnet18": 8}[model]
        row = measure(model, num_rounds=num_rounds, num_nodes=options.nodes)
        figures.append(row)
        print(
            f"{model}: {row['model_megabytes']:.2f} MB, {options.nodes} nodes, {num_rounds} rounds: "
            f"median {row['median_ms']:.1f} ms a round (min {row['min_ms']:.1f}, max {row['max_ms']:.1f}; target {TARGETS[model]}), "
            f"bare MQTT exchange {row['floor_ms']:.1f} ms, ratio {row['ratio']:.2f}"
        )
        above = f"{row['peak_megabytes'] - row['idle_megabytes']:.0f} MB"
        if MODELS[model] >= LARGE_BYTES:
            above += f", {row['peak_above_idle_models']:.2f} models (target {TARGET_MODELS})"
        print(f"  aggregator: idle {row['idle_megabytes']:.0f} MB, peak {row['peak_megabytes']:.0f} MB: above idle by {above}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


def measure(model: str, *, num_rounds: int, num_nodes: int) -> dict[str, Any]:
    """Return one model's figures."""
    nodes = [f"node-{index}" for index in range(num_nodes)]
    with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as scratch:
        folder = Path(scratch)
        with PrivateBroker(folder / "broker", nodes=nodes) as broker:
            floor = measure_floor(broker, nodes, MODELS[model], num_rounds=num_rounds)
            idle_bytes, peak = run_rounds(broker, nodes, model, folder, num_rounds=num_rounds + WARM_UP_ROUNDS)
        periods = round_periods(folder)
    model_bytes = MODELS[model]
    return {
        "model": model,
        "num_nodes": num_nodes,
        "num_rounds": len(periods),
        "model_megabytes": model_bytes / 1e6,
        "median_ms": statistics.median(periods),
        "min_ms": min(periods),
        "max_ms": max(periods),
        "floor_ms": statistics.median(floor) * 1e3,
        "ratio": statistics.median(periods) / (statistics.median(floor) * 1e3),
        "idle_megabytes": idle_bytes / 1e6,
        "peak_megabytes": peak / 1e6,
        "peak_above_idle_models": (peak - idle_bytes) / model_bytes,
    }


def run_rounds(
    broker: PrivateBroker, nodes: Sequence[str], model: str, folder: Path, *, num_rounds: int, options: Sequence[str] = ()
) -> tuple[int, int]:
    """Run a whole run of no-op rounds; return the aggregator's idle and peak resident size in bytes.

    Args:
        broker: carries it.
        nodes: their names.
        model: of `round_process.MODELS`.
        folder: for states, archive and summary.
        num_rounds: of the run.
        options: further arguments of every process.
    """
    command = [sys.executable, "-m", "benchmarks.round_process"]
    common = [
        "--port",
        str(broker.port),
        "--model",
        model,
        "--rounds",
        str(num_rounds),
        "--nodes",
        str(len(nodes)),
        "--folder",
        str(folder),
        *options,
    ]

    def start(role: str, user: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "FEDMQ_BENCH_PASSWORD": broker.passwords[user]}
        return subprocess.Popen([*command, role, "--name", user, *common], env=environment, stdout=subprocess.DEVNULL)

    processes = [start("aggregator", AGGREGATOR)]
    try:
        aggregator = psutil.Process(processes[0].pid)
        _wait_for(lambda: (folder / "ready").exists(), processes)
        idle_bytes = aggregator.memory_info().rss
        processes += [start("node", node) for node in nodes]
        peak = 0
        give_up_at = time.monotonic() + GIVE_UP_SECONDS
        while processes[0].poll() is None and time.monotonic() < give_up_at:
            peak = max(peak, peak_bytes(processes[0].pid))
            time.sleep(POLL_SECONDS)
        if processes[0].returncode != 0:
            raise RuntimeError(f"the aggregator ended with {processes[0].returncode}")
    finally:
        for process in processes:
            process.terminate()
            process.wait()
    return idle_bytes, peak


def round_periods(folder: Path) -> list[float]:
    """Return the milliseconds between the rounds of the run in `folder`, without the warm-up."""
    lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    stamps = [line["time_ns"] for line in lines if line["measurement"] == "round"]
    return [(later - earlier) / 1e6 for earlier, later in itertools.pairwise(stamps)][WARM_UP_ROUNDS - 1 :]


def measure_floor(broker: PrivateBroker, nodes: Sequence[str], num_bytes: int, *, num_rounds: int) -> list[float]:
    """Return the seconds of bare exchanges: one model out to every client, one back from each, in 1 MiB messages."""
    message = bytes(min(num_bytes, 1 << 20))
    num_messages = -(-num_bytes // len(message))
    inbox: queue.Queue[TransportEvent] = queue.Queue()
    server = MqttTransport(_address(broker, AGGREGATOR), client_id="floor-server", on_event=inbox.put)
    server.start()
    _wait_connected(inbox)
    server.subscribe(["fedmq/v2/floor/rounds/1/updates/+/chunks/0"])
    clients = [_echo(broker, node, num_messages, message) for node in nodes]
    time.sleep(0.5)
    seconds = []
    for _ in range(num_rounds):
        start = time.monotonic()
        for _ in range(num_messages):
            server.publish("fedmq/v2/floor/rounds/1/global/chunks/0", message)
        for _ in range(num_messages * len(clients)):
            inbox.get(timeout=GIVE_UP_SECONDS)
        seconds.append(time.monotonic() - start)
    for client in (*clients, server):
        client.stop(5.0)
    return seconds


def _echo(broker: PrivateBroker, node: str, num_messages: int, message: bytes) -> MqttTransport:
    inbox: queue.Queue[TransportEvent] = queue.Queue()
    client = MqttTransport(_address(broker, node), client_id=f"floor-{node}", on_event=inbox.put)
    client.start()
    _wait_connected(inbox)
    client.subscribe(["fedmq/v2/floor/rounds/1/global/chunks/0"])

    def answer() -> None:
        while True:
            for _ in range(num_messages):
                if not isinstance(inbox.get(), Delivered):
                    return
            for _ in range(num_messages):
                client.publish(f"fedmq/v2/floor/rounds/1/updates/{node}/chunks/0", message)

    threading.Thread(target=answer, daemon=True).start()
    return client


def _wait_connected(inbox: queue.Queue[TransportEvent]) -> None:
    event = inbox.get(timeout=GIVE_UP_SECONDS)
    if not isinstance(event, Connected):
        raise TypeError(f"expected a connection, got {event}")


def _address(broker: PrivateBroker, user: str) -> BrokerAddress:
    return BrokerAddress(host=broker.host, port=broker.port, username=user, password=broker.passwords[user])


def _wait_for(condition: Any, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    give_up_at = time.monotonic() + GIVE_UP_SECONDS
    while not condition():
        if time.monotonic() > give_up_at or any(process.poll() is not None for process in processes):
            raise RuntimeError("the benchmark's processes did not start")
        time.sleep(POLL_SECONDS)
