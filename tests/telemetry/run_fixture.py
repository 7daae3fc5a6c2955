"""One real federation, measured into a real database: what the queries, the import and the report are tested on."""

from __future__ import annotations

import base64
import json
import os
import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from edge_node import device
from edge_node.device import DeviceSampler
from edge_node.device_report import DeviceReporter
from federation.broker_address import BrokerAddress
from federation.clock import Clock
from federation.mqtt import MqttTransport
from federation.settings import parse_settings
from federation.transport import TransportEvent
from fedmq import watch
from fedmq.certificates import create_authority, issue_client_certificate
from fedmq.private_broker import PrivateBroker
from tests.broker.client import connected
from tests.telemetry.fleet import Fleet
from tests.telemetry.influx import InfluxServer

NUM_ROUNDS = 3
RUN = "measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """A finished run, its folder and its database."""

    server: InfluxServer
    out_dir: Path
    summary: dict[str, Any]
    since_ns: int
    until_ns: int


def measure(folder: Path, server: InfluxServer, broker: PrivateBroker) -> MeasuredRun:
    """Run three nodes on scikit-learn's digits to the end; `node-0` also reports as a Raspberry Pi would."""
    values = {
        "run": RUN,
        "num_rounds": NUM_ROUNDS,
        "data": {"name": "digits"},
        "partition": {"num_nodes": 3, "scheme": "iid"},
        "training": {"local_epochs": 3, "learning_rate": 0.01},
        "rounds": {"min_nodes": 3},
    }
    server.create("fedmq", "fedmq_samples")
    since_ns = time.time_ns()
    settings = parse_settings(values)
    with connected(broker, "observer") as observer, Fleet(folder / "fleet", broker, settings, influx_url=server.url) as fleet:
        observer.subscribe(*watch.filters(RUN))
        fleet.start_aggregator()
        with pi_reporter(folder / "pi", broker):
            fleet.start_nodes()
            fleet.wait()
        heard = [(topic, base64.b64encode(payload).decode()) for topic, payload in observer.drain()]
    (fleet.out_dir / "heard.json").write_text(json.dumps(heard), encoding="utf-8")
    summary = json.loads((fleet.out_dir / "summary.json").read_text(encoding="utf-8"))
    return MeasuredRun(server=server, out_dir=fleet.out_dir, summary=summary, since_ns=since_ns, until_ns=time.time_ns())


@contextmanager
def pi_reporter(folder: Path, broker: PrivateBroker) -> Iterator[None]:
    """Report, as node-0, the figures of a device with a thermal zone, a firmware that tells of throttling, and a certificate."""
    zone = folder / "thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("cpu-thermal")
    (zone / "temp").write_text("58400\n")
    firmware = folder / "bin" / "vcgencmd"
    firmware.parent.mkdir()
    firmware.write_text("#!/bin/sh\necho throttled=0x50000\n")
    firmware.chmod(0o755)
    now = datetime.now(UTC)
    certificate = folder / "node.crt"
    certificate.write_bytes(issue_client_certificate(create_authority("test", now=now), "node-0", now=now).certificate)
    inbox: queue.Queue[TransportEvent] = queue.Queue()
    address = BrokerAddress(host=broker.host, port=broker.port, username="node-0", password=broker.passwords["node-0"])
    transport = MqttTransport(address, client_id=f"{RUN}-pi", on_event=inbox.put)
    clock = Clock(monotonic=time.monotonic, time_ns=time.time_ns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "THERMAL_ZONES", folder)
        patch.setenv("PATH", f"{firmware.parent}{os.pathsep}{os.environ['PATH']}")
        sampler = DeviceSampler(state_dir=folder, certificate=certificate)
    reporter = DeviceReporter(sampler, transport, run=RUN, node="node-0", clock=clock, sample_seconds=0.5)
    transport.start()
    reporter.start()
    try:
        yield
    finally:
        reporter.stop()
        transport.stop(5.0)
