"""What measuring costs: `scripts/bench telemetry`.

1. Ten minutes of 50 nodes sampled every 2 s, sent as fast as the broker takes them: points a second from MQTT to the
   database, how far it lags, how much memory it holds. Needed are 25 points a second.
2. The same rounds with telemetry on and off, in turns: how much longer a round takes.

With `influxd` and `nginx` (the tests' stand-in for InfluxDB 2) the points go to a real database; without, to
metrics.jsonl alone.
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
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from aggregator.database import Database
from aggregator.database_address import DatabaseAddress
from aggregator.forwarder import Forwarder
from aggregator.record import RunRecord
from aggregator.telemetry import Telemetry
from edge_node.device import DeviceSampler
from federation.broker_address import BrokerAddress
from federation.messages import MetricPoint, MetricsReport
from federation.mqtt import MqttTransport
from federation.process import SYSTEM_CLOCK
from federation.settings import parse_settings
from federation.transport import OnEvent, TransportEvent
from fedmq.private_broker import AGGREGATOR, PrivateBroker
from tests.requirements import Absent, find
from tests.telemetry.influx import InfluxServer

NUM_NODES = 50
SAMPLE_SECONDS = 2.0
SIMULATED_SECONDS = 600.0
GIVE_UP_SECONDS = 300.0
WARM_UP_ROUNDS = 3
NUM_TICKS = 5


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; return 0."""
    parser = argparse.ArgumentParser(prog="scripts/bench telemetry", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="of each of the runs that are compared")
    parser.add_argument("--repeats", type=int, default=4, help="runs with telemetry, and as many without")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as scratch, _database(Path(scratch)) as server:
        figures: dict[str, Any] = {"has_database": server is not None, "throughput": throughput(Path(scratch), server)}
        row = figures["throughput"]
        print(
            f"{row['num_points']} device points of {NUM_NODES} nodes: {row['points_per_second']:.0f} a second "
            f"({row['points_per_second'] / (NUM_NODES / SAMPLE_SECONDS):.0f} times what is needed), "
            f"{row['cpu_us_per_point']:.0f} us of processor each, memory +{row['memory_megabytes']:.1f} MB, "
            f"lag at a live pace {row['lag_ms']:.0f} ms (max {row['max_lag_ms']:.0f}); database {'yes' if server else 'no'}"
        )
        figures["rounds"] = []
        for train_seconds in (0.0, 0.5):
            row = compare(Path(scratch), server, num_rounds=options.rounds, repeats=options.repeats, train_seconds=train_seconds)
            figures["rounds"].append(row)
            print(
                f"a round with {train_seconds} s of training: {row['off_ms']:.2f} ms without telemetry, {row['on_ms']:.2f} ms with "
                f"({row['difference_percent']:+.2f} %; medians of {options.repeats} runs of {options.rounds} rounds each, in turns)"
            )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


def throughput(folder: Path, server: InfluxServer | None) -> dict[str, float]:
    """Return how fast points get through, and what that takes."""
    with PrivateBroker(folder / "broker", nodes=[]) as broker:
        record = RunRecord(out_dir=folder / "out", settings=parse_settings({"run": "bench"}), num_nodes=NUM_NODES)
        record.open("0" * 64)
        address = BrokerAddress(host=broker.host, port=broker.port, username=AGGREGATOR, password=broker.passwords[AGGREGATOR])

        def connect(on_event: OnEvent) -> MqttTransport:
            return MqttTransport(address, client_id="bench-telemetry", on_event=on_event, keeps_session=True, manual_ack=True)

        forwarder = Forwarder(record.journal, Database(DatabaseAddress(url=server.url, token="none"))) if server else None  # noqa: S106
        telemetry = Telemetry(record=record, connect=connect, forwarder=forwarder, clock=SYSTEM_CLOCK)
        telemetry.start()
        inbox: queue.Queue[TransportEvent] = queue.Queue()
        sender = MqttTransport(address, client_id="bench-nodes", on_event=inbox.put)
        sender.start()
        inbox.get(timeout=GIVE_UP_SECONDS)
        time.sleep(1.0)  # the telemetry's subscriptions
        template = DeviceSampler(state_dir=folder).sample(time.time_ns())

        def num_through() -> int:
            return forwarder.num_written if forwarder else record.journal.num_recorded

        num_ticks = int(SIMULATED_SECONDS / SAMPLE_SECONDS)
        started_ns = time.time_ns() - int(SIMULATED_SECONDS * 1e9)
        base, process = num_through(), psutil.Process()
        memory_bytes, peak_bytes, cpu_seconds = process.memory_info().rss, 0, time.process_time()
        start = time.monotonic()
        for tick in range(num_ticks):
            _send(sender, template, started_ns + int(tick * SAMPLE_SECONDS * 1e9))
            peak_bytes = max(peak_bytes, process.memory_info().rss)
        num_points = num_ticks * NUM_NODES
        _wait_for(lambda: num_through() >= base + num_points)
        seconds = time.monotonic() - start
        cpu_seconds = time.process_time() - cpu_seconds
        peak_bytes = max(peak_bytes, process.memory_info().rss)
        lags = list(_live_lags(sender, template, num_through))
        sender.stop(5.0)
        telemetry.stop(30.0, has_ended=False)
    return {
        "num_points": num_points,
        "points_per_second": num_points / seconds,
        # Sending included: this process plays the nodes too.
        "cpu_us_per_point": cpu_seconds / num_points * 1e6,
        "memory_megabytes": (peak_bytes - memory_bytes) / 1e6,
        "lag_ms": statistics.median(lags) * 1e3,
        "max_lag_ms": max(lags) * 1e3,
    }


def _live_lags(sender: MqttTransport, template: MetricPoint, num_through: Callable[[], int]) -> Iterator[float]:
    """Yield, for ticks at their real pace, the seconds until all of a tick's points are through."""
    for _ in range(NUM_TICKS):
        start, base = time.monotonic(), num_through()
        _send(sender, template, time.time_ns())
        _wait_for(lambda base=base: num_through() >= base + NUM_NODES)  # type: ignore[misc]
        yield time.monotonic() - start
        time.sleep(max(0.0, SAMPLE_SECONDS - (time.monotonic() - start)))


def _send(sender: MqttTransport, template: MetricPoint, time_ns: int) -> None:
    while sender.num_pending > 1000:
        time.sleep(0.001)
    for index in range(NUM_NODES):
        point = template.model_copy(update={"time_ns": time_ns})
        sender.publish(f"fedmq/v2/bench/metrics/node-{index}", MetricsReport(node=f"node-{index}", points=[point]).to_payload())


def compare(folder: Path, server: InfluxServer | None, *, num_rounds: int, repeats: int, train_seconds: float) -> dict[str, float]:
    """Return the length of a round without and with telemetry: off, on, on, off, and so on, so that drift cancels."""
    medians: dict[str, list[float]] = {"off": [], "on": []}
    order = [("off", "on") if index % 2 == 0 else ("on", "off") for index in range(repeats)]
    for number, telemetry in enumerate(itertools.chain.from_iterable(order)):
        place = folder / f"rounds-{train_seconds}-{number}"
        place.mkdir()
        medians[telemetry].append(_median_round(place, server, telemetry, num_rounds=num_rounds, train_seconds=train_seconds))
    off, on = (statistics.median(medians[name]) for name in ("off", "on"))
    return {
        "train_seconds": train_seconds,
        "off_ms": off,
        "on_ms": on,
        "difference_percent": 100 * (on / off - 1),
        "spread_percent": 100 * (max(medians["off"]) / min(medians["off"]) - 1),
    }


def _median_round(folder: Path, server: InfluxServer | None, telemetry: str, *, num_rounds: int, train_seconds: float) -> float:
    nodes = ["node-0", "node-1", "node-2"]
    command = [sys.executable, "-m", "benchmarks.round_process"]
    with PrivateBroker(folder / "broker", nodes=nodes) as broker:
        options = {
            "--port": broker.port,
            "--model": "simple_cnn",
            "--rounds": num_rounds + WARM_UP_ROUNDS,
            "--nodes": len(nodes),
            "--folder": folder,
            "--telemetry": telemetry,
            "--train-seconds": train_seconds,
        }
        common = [str(part) for option in options.items() for part in option]

        def start(role: str, user: str) -> subprocess.Popen[bytes]:
            known = {"FEDMQ_BENCH_PASSWORD": broker.passwords[user], **({"FEDMQ_BENCH_INFLUX_URL": server.url} if server else {})}
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **known}
            return subprocess.Popen([*command, role, "--name", user, *common], env=environment, stdout=subprocess.DEVNULL)

        processes = [start("aggregator", AGGREGATOR)]
        try:
            _wait_for((folder / "ready").exists)
            processes += [start("node", node) for node in nodes]
            if processes[0].wait(GIVE_UP_SECONDS) != 0:
                raise RuntimeError(f"the aggregator ended with {processes[0].returncode}")
        finally:
            for process in processes:
                process.terminate()
                process.wait()
    lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    stamps = [line["time_ns"] for line in lines if line["measurement"] == "round"]
    periods: list[float] = [(later - earlier) / 1e6 for earlier, later in itertools.pairwise(stamps[WARM_UP_ROUNDS:])]
    return statistics.median(periods)


@contextmanager
def _database(folder: Path) -> Iterator[InfluxServer | None]:
    try:
        influxd = find("database")
    except Absent as absent:
        print(f"no database: {absent}", file=sys.stderr)
        yield None
        return
    server = InfluxServer(folder / "influx", influxd)
    server.start()
    try:
        server.create("fedmq", "fedmq_samples")
        yield server
    finally:
        server.stop()


def _wait_for(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + GIVE_UP_SECONDS
    while not condition():
        if time.monotonic() > give_up_at:
            raise RuntimeError("the benchmark does not get on")
        time.sleep(0.002)
