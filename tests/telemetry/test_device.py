"""The device's figures are sane, cheap, and survive a device that tells nothing."""

from __future__ import annotations

import queue
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edge_node import device
from edge_node.device import DeviceSampler, read_throttling
from edge_node.device_report import DeviceReporter
from federation import topics
from federation.broker_address import BrokerAddress
from federation.clock import Clock
from federation.messages import MetricsReport, parse
from federation.metric_schema import MEASUREMENTS
from federation.metrics import point_of_node
from federation.mqtt import MqttTransport
from federation.transport import Delivered, TransportEvent
from fedmq.certificates import create_authority, issue_client_certificate
from fedmq.private_broker import AGGREGATOR, PrivateBroker

TAGS = {"run": "r", "strategy": "fedavg", "node": "node-0"}
SHARES = ("cpu", "memory_used", "disk_used")


def test_a_sample_fits_the_table_and_makes_sense(tmp_path: Path) -> None:
    sampler = DeviceSampler(state_dir=tmp_path)
    point = sampler.sample(time.time_ns())
    checked = point_of_node(point, tags=TAGS, round_number=0, now_ns=time.time_ns())
    assert set(checked.fields) == set(point.fields), "a field is missing in federation/metric_schema.py"
    for name in SHARES:
        assert 0 <= float(checked.fields[name]) <= 1
    assert 1 << 20 < int(checked.fields["process_memory_bytes"]) < int(checked.fields["memory_used_bytes"]) + (1 << 30)
    assert "certificate_days" not in checked.fields


def test_heat_is_read_where_the_processor_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, (kind, milli) in enumerate((("battery", "70000"), ("cpu-thermal", "61500"), ("soc", "nonsense"))):
        zone = tmp_path / f"thermal_zone{index}"
        zone.mkdir()
        (zone / "type").write_text(kind)
        (zone / "temp").write_text(f"{milli}\n")
    monkeypatch.setattr(device, "THERMAL_ZONES", tmp_path)
    sampler = DeviceSampler(state_dir=tmp_path)
    assert sampler.sample(1).fields["temperature_celsius"] == 61.5
    (tmp_path / "thermal_zone1" / "temp").unlink()
    assert "temperature_celsius" not in sampler.sample(2).fields


@pytest.mark.parametrize(
    ("answer", "flags"),
    [
        ("throttled=0x0", {"under_voltage": 0, "throttled": 0, "throttled_since_boot": 0}),
        ("throttled=0x50005", {"under_voltage": 1, "throttled": 1, "throttled_since_boot": 1}),
        ("throttled=0x80000", {"under_voltage": 0, "throttled": 0, "throttled_since_boot": 1}),
        ("throttled=0x10001", {"under_voltage": 1, "throttled": 0, "throttled_since_boot": 0}),
        ("VCHI initialization failed", {}),
    ],
)
def test_the_firmwares_flags_are_told_apart(tmp_path: Path, answer: str, flags: dict[str, int]) -> None:
    program = tmp_path / "vcgencmd"
    program.write_text(f"#!/bin/sh\necho '{answer}'\n")
    program.chmod(0o755)
    assert read_throttling(str(program)) == flags


def test_a_certificates_last_days_are_counted(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    issued = issue_client_certificate(create_authority("test", now=now), "node-0", now=now)
    path = tmp_path / "node.crt"
    path.write_bytes(issued.certificate)
    days = (
        DeviceSampler(state_dir=tmp_path, certificate=path)
        .sample(int((now + timedelta(days=1)).timestamp() * 1e9))
        .fields["certificate_days"]
    )
    later = (
        DeviceSampler(state_dir=tmp_path, certificate=path)
        .sample(int((now + timedelta(days=31)).timestamp() * 1e9))
        .fields["certificate_days"]
    )
    assert days > 0
    assert days - later == pytest.approx(30, abs=0.01)


def test_a_sample_costs_less_than_a_percent_of_a_core(tmp_path: Path) -> None:
    """Processor time, not wall time: 1 % of a core at one sample in 5 s is 50 ms; it takes about 1."""
    sampler = DeviceSampler(state_dir=tmp_path)
    before = time.process_time()
    for _ in range(50):
        sampler.sample(time.time_ns())
    assert (time.process_time() - before) / 50 < 0.01 * device.SAMPLE_SECONDS


def test_a_node_reports_over_the_broker(mosquitto: PrivateBroker, run_name: str, tmp_path: Path) -> None:
    inbox: queue.Queue[TransportEvent] = queue.Queue()

    def transport_of(user: str, receiver: queue.Queue[TransportEvent]) -> MqttTransport:
        address = BrokerAddress(host=mosquitto.host, port=mosquitto.port, username=user, password=mosquitto.passwords[user])
        transport = MqttTransport(address, client_id=f"{run_name}-{user}", on_event=receiver.put)
        transport.start()
        return transport

    aggregator = transport_of(AGGREGATOR, inbox)
    aggregator.subscribe([topics.metrics_filter(run_name)])
    node = transport_of("node-0", queue.Queue())
    clock = Clock(monotonic=time.monotonic, time_ns=time.time_ns)
    reporter = DeviceReporter(DeviceSampler(state_dir=tmp_path), node, run=run_name, node="node-0", clock=clock, sample_seconds=0.05)
    reporter.start()
    reports: list[MetricsReport] = []
    while len(reports) < 3:
        event = inbox.get(timeout=30)
        if isinstance(event, Delivered):
            assert event.topic == f"fedmq/v2/{run_name}/metrics/node-0"
            reports.append(parse(MetricsReport, event.payload))
    reporter.stop()
    node.stop(5.0)
    aggregator.stop(5.0)
    assert {report.node for report in reports} == {"node-0"}
    times = [report.points[0].time_ns for report in reports]
    assert times == sorted(set(times))
    assert set(reports[0].points[0].fields) <= set(MEASUREMENTS["device"].by_name)
