"""The guard as it is shipped, `python -m aggregator.guard`, beside a broker that an enrolled node fills."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from federation.broker_address import BrokerAddress
from fedmq.enrolment import add_node
from fedmq.observer import read_retained
from fedmq.site import Site
from tests.security.conftest import RunningBroker
from tests.security.mqtt_client import eventually, unpack
from tests.wire.raw_packets import USER_PROPERTY, RawClient, publish

pytestmark = pytest.mark.mosquitto

NUM_LONG_TOPICS = 1500
LONG = 60_000
MAX_GUARD_KILOBYTES = 350_000
"""Compose gives it 512 MiB."""


@pytest.fixture
def guard(site: Site, broker: RunningBroker, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {
        "FEDMQ_BROKER_HOST": "localhost",
        "FEDMQ_BROKER_PORT": str(broker.inner.port),
        "FEDMQ_BROKER_USERNAME": "aggregator",
        "FEDMQ_BROKER_PASSWORD_FILE": str(site.folder / "secrets" / "aggregator_password"),
        "FEDMQ_STATE_DIR": str(tmp_path / "guard"),
    }
    with (tmp_path / "guard.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "aggregator.guard"], env=environment, stdout=log, stderr=log)
    yield process
    process.terminate()
    assert process.wait(20) == 0


@pytest.fixture
def attacker(site: Site, broker: RunningBroker, tmp_path: Path) -> Iterator[RawClient]:
    """An enrolled node's connection."""
    folder = unpack(add_node(site, "evil", now=datetime.now(UTC)), tmp_path)
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.load_cert_chain(folder / "node.crt", folder / "node.key")
    raw = RawClient(broker.fleet.host, broker.fleet.port, context)
    raw.log_in("evil")
    raw.socket.settimeout(120)
    yield raw
    raw.close()


def retained(site: Site, broker: RunningBroker) -> list[str]:
    """Return what the broker retains under the protocol's root."""
    password = (site.folder / "secrets" / "aggregator_password").read_text()
    address = BrokerAddress(host=broker.inner.host, port=broker.inner.port, username="aggregator", password=password)
    return sorted(read_retained(address, ["fedmq/v2/#"])[1])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_guard_outlives_what_an_enrolled_node_can_send(
    site: Site, broker: RunningBroker, guard: subprocess.Popen[bytes], attacker: RawClient, tmp_path: Path
) -> None:
    with suppress(OSError):  # a broker at its limit cuts who sends
        for index in range(20):
            topic = f"fedmq/v2/r/rounds/1/updates/evil/chunks/{index}"
            attacker.socket.sendall(publish(topic, b"1", properties=USER_PROPERTY * 540_000))
        for index in range(NUM_LONG_TOPICS):
            name = f"{index:06d}" + "x" * LONG
            attacker.socket.sendall(publish(f"fedmq/v2/{name}/nodes/evil/status", b"1", packet_id=index % 60_000 + 1))
    log = tmp_path / "guard.log"
    # What is left is what no round asked for, below the size at which a sweep does not wait.
    assert eventually(lambda: retained(site, broker) == [], wait_seconds=120), log.read_text()[-2000:]
    assert guard.poll() is None
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{guard.pid}/status").read_text())
    assert peak is not None
    assert int(peak.group(1)) < MAX_GUARD_KILOBYTES
    assert "node=evil cleared=" in log.read_text()
