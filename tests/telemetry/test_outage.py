"""Kill the database for whole rounds and the aggregator while points wait: afterwards every point is there once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from federation import topics
from federation.messages import MetricsReport, parse
from federation.metric_schema import MEASUREMENTS
from federation.metrics import SERVER
from federation.settings import parse_settings
from fedmq.private_broker import PrivateBroker
from tests.broker.client import BrokerClient, connected
from tests.telemetry.fleet import Fleet
from tests.telemetry.influx import InfluxServer

pytestmark = [pytest.mark.slow, pytest.mark.database]

NUM_ROUNDS = 5


def settings(run: str) -> Any:
    """Return a short run of three nodes on scikit-learn's digits."""
    values = {
        "run": run,
        "num_rounds": NUM_ROUNDS,
        "data": {"name": "digits"},
        "partition": {"num_nodes": 3, "scheme": "iid"},
        "training": {"local_epochs": 1},
        "rounds": {"min_nodes": 3},
    }
    return parse_settings(values)


def recorded(out_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl."""
    return [json.loads(line) for line in (out_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def num_rounds_done(out_dir: Path) -> int:
    """Return how many rounds the summary has."""
    summary = out_dir / "summary.json"
    return len(json.loads(summary.read_text(encoding="utf-8"))["rounds"]) if summary.exists() else 0


def heard(observer: BrokerClient, run: str) -> set[tuple[str, str, int]]:
    """Return node, measurement and time of every point that nodes sent, as another client of the broker heard them."""
    points: set[tuple[str, str, int]] = set()
    for topic, payload in observer.drain():
        parsed = topics.parse_topic(topic)
        assert isinstance(parsed, topics.MetricsTopic)
        assert parsed.run == run
        points |= {(parsed.node, point.measurement, point.time_ns) for point in parse(MetricsReport, payload).points}
    return points


def test_no_point_is_lost_and_none_is_there_twice(
    own_influx: InfluxServer, own_mosquitto: PrivateBroker, tmp_path: Path, run_name: str
) -> None:
    own_influx.create("fedmq", "fedmq_samples")
    with (
        connected(own_mosquitto, "observer") as observer,
        Fleet(tmp_path / "fleet", own_mosquitto, settings(run_name), influx_url=own_influx.url) as fleet,
    ):
        observer.subscribe(topics.metrics_filter(run_name))
        fleet.start_aggregator()
        fleet.start_nodes()
        fleet.wait_until(lambda: num_rounds_done(fleet.out_dir) >= 1)
        own_influx.stop(kill=True)
        fleet.wait_until(lambda: num_rounds_done(fleet.out_dir) >= 2)
        fleet.kill("aggregator")
        fleet.start_aggregator(is_resuming=True)
        fleet.wait_until(lambda: num_rounds_done(fleet.out_dir) >= 3)
        own_influx.start()
        fleet.wait()
        sent = heard(observer, run_name)
    points = recorded(fleet.out_dir)
    identities = Counter((p["measurement"], p["time_ns"], tuple(sorted(p["tags"].items()))) for p in points)
    assert max(identities.values()) == 1
    # The server's own inference points, of the node `aggregator`, never were on the wire.
    of_nodes = [p for p in points if p["measurement"] in {"train", "device", "inference"} and p["tags"]["node"] != SERVER]
    assert {(p["tags"]["node"], p["measurement"], p["time_ns"]) for p in of_nodes} == sent
    assert {p["fields"]["round_number"] for p in points if p["measurement"] == "round"} == set(range(1, NUM_ROUNDS + 1))
    assert len([p for p in points if p["tags"].get("kind") == "aggregator_started"]) == 2
    counts = Counter(p["measurement"] for p in points)
    for name, measurement in MEASUREMENTS.items():
        bucket = "fedmq" if measurement.keep == "rounds" else "fedmq_samples"
        assert own_influx.count(name, bucket) == counts[name], name
