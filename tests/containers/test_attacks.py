"""What strangers, revoked nodes and malicious nodes try against the running server: refused, logged, and the run goes on."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedmq.enrolment import add_node, mark_revoked
from fedmq.revocation import enforce
from fedmq.site import create_site
from tests.containers.conftest import Server
from tests.security.mqtt_client import Client, eventually, settle, unpack

pytestmark = [pytest.mark.docker, pytest.mark.data, pytest.mark.slow, pytest.mark.timeout(1200)]

NOW = datetime.now(UTC)
RUN = "fedmq/v2/background"
MEBIBYTE = 1 << 20
NUM_CONNECTIONS = 1000
HOLD_CONNECTIONS = """
import socket, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
opened = [socket.create_connection((host, port), timeout=30) for _ in range(count)]
print("open", flush=True)
sys.stdin.read()
"""


@dataclass(slots=True, kw_only=True)
class Attacker:
    """An enrolled node gone bad, at a server in the midst of a run."""

    server: Server
    folder: Path
    bundle: Path
    clients: list[Client]

    def connect(self, client: Client) -> Client:
        """Connect from outside, through the published port."""
        self.clients.append(client.connect(self.server.fleet.host, self.server.fleet.port))
        return client

    def as_node(self) -> Client:
        """Connect with the attacker's own good certificate."""
        client = self.connect(Client().with_bundle(self.bundle))
        assert client.connected == "Success"
        return client


@pytest.fixture
def attacker(server: Server, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Attacker]:
    server.keep_running()
    name = f"evil-{request.node.name.removeprefix('test_')[:40].lower().replace('[', '-').replace(']', '')}".replace(".", "-")
    attacker = Attacker(server=server, folder=tmp_path, bundle=unpack(add_node(server.site, name, now=NOW), tmp_path), clients=[])
    yield attacker
    for client in attacker.clients:
        client.close()
    server.assert_goes_on()


def test_strangers_are_refused(attacker: Attacker) -> None:
    """No certificate, another authority's, an expired one, a revoked one; each leaves a line in the broker's log."""
    site, folder = attacker.server.site, attacker.folder
    foreign_site = create_site(folder / "foreign", folder / "foreign.env", name="other", hosts=["x.test"], now=NOW)
    foreign = unpack(add_node(foreign_site, "pi-9", now=NOW), folder)
    expired = unpack(add_node(site, "expired", now=NOW - timedelta(days=9), days=3), folder)
    revoked = unpack(add_node(site, "revoked", now=NOW), folder)
    connected = attacker.connect(Client().with_bundle(revoked))
    assert connected.connected == "Success"
    mark_revoked(site, "revoked")
    enforce(site, "revoked", attacker.server.fleet, now=NOW)
    assert connected.wait_disconnected()
    ca = site.certificate_file
    before = _num_tls_errors(attacker.server)
    for stranger in (
        Client().with_certificate(ca=ca),
        Client().with_certificate(ca=ca, certificate=foreign / "node.crt", key=foreign / "node.key"),
        Client().with_bundle(expired),
        Client().with_bundle(revoked),
    ):
        assert attacker.connect(stranger).connected is None
    assert eventually(lambda: _num_tls_errors(attacker.server) >= before + 4)


def test_node_writes_nothing_that_is_not_its_own(attacker: Attacker) -> None:
    node = attacker.as_node()
    foreign = [
        f"{RUN}/nodes/demo-pi5-8gb/status",
        f"{RUN}/rounds/1/updates/demo-pi5-8gb/manifest",
        f"{RUN}/rounds/1/updates/demo-pi5-8gb/chunks/0",
        f"{RUN}/metrics/demo-pi5-8gb",
        f"{RUN}/state",
        f"{RUN}/rounds/1/plan",
        f"{RUN}/rounds/1/global/manifest",
        f"{RUN}/rounds/1/global/chunks/0",
        f"{RUN}/rounds/1/result",
        f"{RUN}/rounds/1/acks/demo-pi5-8gb",
        "$SYS/broker/version",
        "$CONTROL/dynamic-security/v1",
        "elsewhere",
    ]
    assert {topic: node.publish(topic, b"{}") for topic in foreign} == dict.fromkeys(foreign, "Not authorized")


def test_node_reads_nothing_of_its_neighbours(attacker: Attacker) -> None:
    node = attacker.as_node()
    for topic_filter in (
        "#",
        "$SYS/#",
        f"{RUN}/rounds/+/result",
        f"{RUN}/rounds/+/updates/#",
        f"{RUN}/nodes/#",
        f"{RUN}/metrics/#",
        f"{RUN}/rounds/+/acks/+",
    ):
        node.subscribe(topic_filter)
    attacker.server.assert_goes_on()
    settle()
    kinds = {"/".join(topic.split("/")[3:4] + topic.split("/")[5:6]) for topic, _ in node.messages}
    assert kinds <= {"state", "aggregator", "rounds/plan", "rounds/global"}
    assert "rounds/plan" in kinds  # the subscription did deliver what is allowed


def test_passwords_do_not_help_outside(attacker: Attacker) -> None:
    """A wrong aggregator password inside; the right one, and plain MQTT, from outside the Compose network."""
    server = attacker.server
    password = (server.site.folder / "secrets" / "aggregator_password").read_text(encoding="utf-8")
    login = ("mosquitto_pub", "-h", "broker-inner", "-i", "intruder", "-u", "aggregator", "-t", "fedmq/v2/x/state", "-m", "{}", "-q", "1")
    wrong = server.stack.compose("exec", "-T", "broker", *login, "-P", "wrong", check=False)
    assert wrong.returncode != 0
    assert "not authorised" in wrong.stderr
    assert "intruder disconnected, not authorised" in server.stack.logs("broker")
    assert (
        attacker.connect(Client().with_certificate(ca=server.site.certificate_file).with_password("aggregator", password)).connected is None
    )
    assert attacker.connect(Client().with_password("aggregator", password)).connected is None
    ports = server.inspections()["broker"]["NetworkSettings"]["Ports"]
    assert not ports.get("1883/tcp")
    assert [binding["HostIp"] for binding in ports["8884/tcp"]] == ["127.0.0.1"]


def test_oversize_packet_is_refused(attacker: Attacker) -> None:
    node = attacker.as_node()
    with contextlib.suppress(ValueError):  # paho itself refuses once the broker has said its Maximum Packet Size
        assert node.publish(f"{RUN}/metrics/{attacker.bundle.name}", bytes(5 * MEBIBYTE), retain=False) != "Success"


def test_thousand_connections_leave_the_run_alone(attacker: Attacker) -> None:
    fleet = attacker.server.fleet
    # Another process: paho's `select` takes no file descriptor above 1024.
    arguments = [sys.executable, "-c", HOLD_CONNECTIONS, fleet.host, str(fleet.port), str(NUM_CONNECTIONS)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as flood:
        assert flood.stdin is not None
        assert flood.stdout is not None
        assert flood.stdout.readline() == "open\n"
        node = attacker.as_node()
        assert node.publish(f"{RUN}/metrics/{attacker.bundle.name}", b"{}", retain=False) == "Success"
        attacker.server.assert_goes_on()
        flood.stdin.close()


def test_retained_garbage_is_bounded(attacker: Attacker) -> None:
    """200 MB under the node's own topics: the guard clears what no round asked for, and the broker does not swell."""
    server, name = attacker.server, attacker.bundle.name
    node = attacker.as_node()
    for index in range(200):
        node.publish(f"{RUN}/rounds/{900_000 + index % 20}/updates/{name}/chunks/{index}", bytes(MEBIBYTE))
    server.stack.wait_for_log("guard", f"node={name} cleared")
    assert eventually(lambda: _retained_bytes(server, f"{RUN}/rounds/+/updates/{name}/#") < 16 * MEBIBYTE, wait_seconds=90)


def _num_tls_errors(server: Server) -> int:
    """Count the broker's lines on failed handshakes, as 2.0.11 and as later versions write them."""
    return len(re.findall(r"OpenSSL Error|Client connection from \S+ failed: error:", server.stack.logs("broker")))


def _retained_bytes(server: Server, topic_filter: str) -> int:
    """Return how many bytes are retained under a filter, as the observer sees them from the server itself."""
    password = (server.site.folder / "secrets" / "observer_password").read_text(encoding="utf-8")
    login = ("-h", server.observers.host, "-p", str(server.observers.port), "--cafile", str(server.site.certificate_file), "-u", "observer")
    command = ["mosquitto_sub", *login, "-P", password, "-t", topic_filter, "-F", "%l", "--retained-only", "-W", "3"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return sum(map(int, result.stdout.split()))
