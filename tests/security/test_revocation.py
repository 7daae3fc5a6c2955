"""Revocation against a real Mosquitto: what each means can and cannot do, and that ours does both at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from federation.broker_address import BrokerAddress as MqttAddress
from federation.broker_address import TlsFiles
from federation.errors import TransportError
from federation.messages import NodeOutcome, RoundResult
from fedmq.enrolment import add_node, mark_revoked, renew_node
from fedmq.leftovers import clear_leftovers
from fedmq.observer import read_retained
from fedmq.revocation import BrokerAddress, enforce, write_revocation_list
from fedmq.site import Site, create_site
from tests.security.conftest import RunningBroker
from tests.security.mqtt_client import Client, eventually, settle, unpack

pytestmark = pytest.mark.mosquitto

NOW = datetime.now(UTC)


@pytest.fixture
def clients() -> Iterator[list[Client]]:
    opened: list[Client] = []
    yield opened
    for client in opened:
        client.close()


def test_revoked_node_is_thrown_out_at_once_and_refused_later(
    site: Site, broker: RunningBroker, tmp_path: Path, clients: list[Client]
) -> None:
    bundle, other = (unpack(add_node(site, name, now=NOW), tmp_path) for name in ("pi-1", "pi-2"))
    node = Client().with_bundle(bundle).connect(broker.fleet.host, broker.fleet.port)
    neighbour = Client().with_bundle(other).connect(broker.fleet.host, broker.fleet.port)
    clients += [node, neighbour]
    assert node.connected == neighbour.connected == "Success"

    mark_revoked(site, "pi-1")
    enforce(site, "pi-1", broker.fleet, now=NOW)

    assert node.wait_disconnected()
    again = Client().with_bundle(bundle).connect(broker.fleet.host, broker.fleet.port)
    clients.append(again)
    assert again.connected is None
    assert neighbour.disconnected is None
    assert neighbour.publish("fedmq/v2/demo/nodes/pi-2/status", b"{}") in {"Success", "No matching subscribers"}
    assert broker.process.poll() is None
    assert "certificate verify failed" in broker.log


def test_what_a_revoked_node_left_on_the_broker_goes_with_it(
    site: Site, broker: RunningBroker, tmp_path: Path, clients: list[Client]
) -> None:
    """A retained status outlived its node, and met every later aggregator; only accepted updates are the run's, and stay."""
    bundle = unpack(add_node(site, "pi-1", now=NOW), tmp_path)
    node = Client().with_bundle(bundle).connect(broker.fleet.host, broker.fleet.port)
    password = (site.folder / "secrets" / "aggregator_password").read_text(encoding="utf-8")
    aggregator = Client().with_password("aggregator", password).connect(broker.inner.host, broker.inner.port)
    clients += [node, aggregator]
    updates = [f"fedmq/v2/demo/rounds/{number}/updates/pi-1/manifest" for number in (1, 2)]
    gone = ["fedmq/v2/demo/nodes/pi-1/status", "fedmq/v2/other/nodes/pi-1/status", "fedmq/v2/demo/metrics/pi-1", updates[1]]
    for topic in [*gone, updates[0]]:
        node.publish(topic, b"left", retain=True)
    accepted = RoundResult(
        run="demo",
        round_number=1,
        epoch=1,
        previous_result_digest=None,
        method="fedavg",
        aggregated=True,
        global_digest="a" * 64,
        next_global_digest="b" * 64,
        outcomes=[NodeOutcome(node="pi-1", outcome="accepted")],
        evaluation=None,
        accepted=1,
        rejected=0,
        discarded=0,
        stragglers=0,
        seconds=1.0,
        phase_seconds={},
        bytes_up=1,
        bytes_down=1,
    )
    aggregator.publish("fedmq/v2/demo/rounds/1/result", accepted.to_payload(), retain=True)
    aggregator.publish("fedmq/v2/demo/nodes/pi-2/status", b"another's", retain=True)
    mark_revoked(site, "pi-1")
    enforce(site, "pi-1", broker.fleet, now=NOW)
    assert sorted(clear_leftovers(site, "pi-1", fleet=broker.fleet, observers=broker.observers, now=NOW)) == sorted(gone)
    assert clear_leftovers(site, "pi-1", fleet=broker.fleet, observers=broker.observers, now=NOW) == []
    observer = (site.folder / "secrets" / "observer_password").read_text(encoding="utf-8")
    tls = TlsFiles(ca=site.certificate_file)
    address = MqttAddress(host=broker.observers.host, port=broker.observers.port, username="observer", password=observer, tls=tls)
    _, left = read_retained(address, ["fedmq/v2/#"])
    assert sorted(left) == sorted([updates[0], "fedmq/v2/demo/rounds/1/result", "fedmq/v2/demo/nodes/pi-2/status"])


def test_list_and_reload_alone_leave_a_connected_node_in(site: Site, broker: RunningBroker, tmp_path: Path, clients: list[Client]) -> None:
    """Why `enforce` takes the session over: Mosquitto judges certificates in the handshake only."""
    bundle = unpack(add_node(site, "pi-1", now=NOW), tmp_path)
    node = Client().with_bundle(bundle).connect(broker.fleet.host, broker.fleet.port)
    clients.append(node)
    mark_revoked(site, "pi-1")
    write_revocation_list(site, now=NOW)
    broker.process.send_signal(signal.SIGHUP)
    settle()
    assert node.disconnected is None


def test_renewed_and_re_enrolled_nodes_get_in(site: Site, broker: RunningBroker, tmp_path: Path, clients: list[Client]) -> None:
    add_node(site, "pi-1", now=NOW)
    renewed = unpack(renew_node(site, "pi-1", now=NOW), tmp_path / "renewed")
    node = Client().with_bundle(renewed).connect(broker.fleet.host, broker.fleet.port)
    clients.append(node)
    assert node.connected == "Success"
    mark_revoked(site, "pi-1")
    enforce(site, "pi-1", broker.fleet, now=NOW)
    enrolled_anew = unpack(add_node(site, "pi-1", now=NOW), tmp_path / "anew")
    node = Client().with_bundle(enrolled_anew).connect(broker.fleet.host, broker.fleet.port)
    clients.append(node)
    assert node.connected == "Success"


def test_no_expired_no_foreign_no_missing_certificate_gets_in(
    site: Site, broker: RunningBroker, tmp_path: Path, clients: list[Client]
) -> None:
    expired = unpack(add_node(site, "late", now=NOW - timedelta(days=10), days=5), tmp_path)
    foreign_site = create_site(tmp_path / "foreign", tmp_path / "foreign.env", name="other", hosts=["x.test"], now=NOW)
    foreign = unpack(add_node(foreign_site, "pi-1", now=NOW), tmp_path)
    own_ca = site.certificate_file
    attempts = [
        Client().with_certificate(ca=own_ca),
        Client().with_certificate(ca=own_ca, certificate=foreign / "node.crt", key=foreign / "node.key"),
        Client().with_bundle(expired),
        # The broker's own certificate may serve, not connect.
        Client().with_certificate(ca=own_ca, certificate=site.folder / "broker/server.crt", key=site.folder / "broker/server.key"),
    ]
    for attempt in attempts:
        clients.append(attempt.connect(broker.fleet.host, broker.fleet.port))
        assert attempt.connected is None
    # A client may know before the line is written.
    assert eventually(lambda: broker.log.lower().count("tls") + broker.log.lower().count("ssl") >= len(attempts)), broker.log


def test_node_cannot_take_anothers_session_by_its_client_id(
    site: Site, broker: RunningBroker, tmp_path: Path, clients: list[Client]
) -> None:
    first, second = (unpack(add_node(site, name, now=NOW), tmp_path) for name in ("pi-1", "pi-2"))
    victim = Client("pi-1").with_bundle(first).connect(broker.fleet.host, broker.fleet.port)
    thief = Client("pi-1").with_bundle(second).connect(broker.fleet.host, broker.fleet.port)
    clients += [victim, thief]
    settle()
    assert thief.connected == "Success"
    assert victim.disconnected is None
    assert thief.publish("fedmq/v2/demo/nodes/pi-1/status", b"{}") == "Not authorized"


def test_passwords_open_the_inner_listeners_only(site: Site, broker: RunningBroker, clients: list[Client]) -> None:
    password = (site.folder / "secrets" / "aggregator_password").read_text(encoding="utf-8")
    observer = (site.folder / "secrets" / "observer_password").read_text(encoding="utf-8")
    inner, fleet, outer = broker.inner, broker.fleet, broker.observers
    right = Client().with_password("aggregator", password).connect(inner.host, inner.port)
    wrong = Client().with_password("aggregator", "wrong").connect(inner.host, inner.port)
    nobody = Client().connect(inner.host, inner.port)
    outside = Client().with_certificate(ca=site.certificate_file).with_password("aggregator", password).connect(fleet.host, fleet.port)
    onlookers = [
        Client().with_certificate(ca=site.certificate_file).with_password("observer", observer).connect(outer.host, outer.port)
        for _ in range(2)
    ]
    clients += [right, wrong, nobody, outside, *onlookers]
    assert right.connected == "Success"
    assert wrong.connected == nobody.connected == "Not authorized"
    assert outside.connected is None
    assert [client.connected for client in onlookers] == ["Success", "Success"]
    assert onlookers[0].disconnected is None
    assert onlookers[0].publish("fedmq/v2/demo/state", b"{}") == "Not authorized"


def test_revoking_with_no_broker_says_what_to_run(site: Site, unused_address: BrokerAddress) -> None:
    add_node(site, "pi-1", now=NOW)
    mark_revoked(site, "pi-1")
    with pytest.raises(TransportError, match="docker compose up -d broker"):
        enforce(site, "pi-1", unused_address, now=NOW)
