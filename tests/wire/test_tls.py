"""The transport over TLS with client certificates, against a broker configured for it."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from federation.mqtt import BrokerAddress, MqttTransport, TlsFiles
from federation.network_pause import LinkSelector, WakeUp
from federation.transport import Connected, Delivered, Disconnected, TransportEvent
from fedmq.certificates import Issued, create_authority, issue_client_certificate, issue_server_certificate
from tests.requirements import require
from tests.wire.places import wait_until

CONFIGURATION = """
listener {port} 127.0.0.1
cafile {folder}/ca.crt
certfile {folder}/server.crt
keyfile {folder}/server.key
require_certificate true
use_identity_as_username true
allow_anonymous false
user {user}
"""


class TlsBroker:
    """A Mosquitto that takes clients of its own authority alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = create_authority("site", now=datetime.now(UTC))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        write(folder / "ca", self.authority)
        write(folder / "server", issue_server_certificate(self.authority, ["localhost"], now=datetime.now(UTC)))

    def accepts(self) -> bool:
        """Return whether the broker listens by now."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1.0).close()
        except OSError:
            return False
        return True

    def address(
        self, name: str, *, authority: Issued | None = None, host: str = "localhost", has_certificate: bool = True
    ) -> BrokerAddress:
        """Return how the client of that name reaches the broker, with a certificate of some authority."""
        write(self.folder / name, issue_client_certificate(authority or self.authority, name, now=datetime.now(UTC)))
        certificate, key = (self.folder / f"{name}.crt", self.folder / f"{name}.key") if has_certificate else (None, None)
        return BrokerAddress(host=host, port=self.port, tls=TlsFiles(ca=self.folder / "ca.crt", certificate=certificate, key=key))


def write(path: Path, issued: Issued) -> None:
    path.with_suffix(".crt").write_bytes(issued.certificate)
    path.with_suffix(".key").write_bytes(issued.key)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsBroker]:
    program = require("mosquitto")
    broker = TlsBroker(tmp_path_factory.mktemp("tls"))
    user = "root" if os.geteuid() == 0 else "mosquitto"
    configuration = broker.folder / "mosquitto.conf"
    configuration.write_text(CONFIGURATION.format(port=broker.port, folder=broker.folder, user=user))
    with (broker.folder / "broker.log").open("wb") as log:
        process = subprocess.Popen([program, "-c", configuration], stdout=log, stderr=log)
        try:
            wait_until(broker.accepts)
            yield broker
        finally:
            process.terminate()
            process.wait(30)


def started(address: BrokerAddress, client_id: str) -> tuple[MqttTransport, list[TransportEvent]]:
    events: list[TransportEvent] = []
    transport = MqttTransport(address, client_id=client_id, on_event=events.append)
    transport.start()
    wait_until(lambda: any(isinstance(event, Connected) for event in events))
    return transport, events


def test_bytes_that_tls_has_decrypted_count_as_readable(tmp_path: Path) -> None:
    """The socket announces a record once; what was not read of it would wait for the next one."""
    authority = create_authority("site", now=datetime.now(UTC))
    write(tmp_path / "ca", authority)
    write(tmp_path / "server", issue_server_certificate(authority, ["localhost"], now=datetime.now(UTC)))
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    near, far = socket.socketpair()
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(server_side.wrap_socket, far, server_side=True)
        link = TlsFiles(ca=tmp_path / "ca.crt").make_context().wrap_socket(near, server_hostname="localhost")
    wake_up = WakeUp()
    with accepted.result() as server, link, LinkSelector(link, wake_up) as selector:
        server.sendall(b"ab")
        assert link.recv(1) == b"a"
        assert selector.wait(0.0, wants_write=False) == (True, False)
        assert link.recv(1) == b"b"
        assert link.pending() == 0
    wake_up.close()


@pytest.mark.parametrize(
    ("days", "name", "advice"),
    [
        (10, "localhost", "not valid yet: set the clock"),
        (-900, "localhost", "has expired: set the clock"),
        (0, "elsewhere.example.org", "is for another name: set FEDMQ_BROKER_HOST"),
    ],
)
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket")  # paho leaves a socket whose handshake failed to Python
def test_a_certificate_that_does_not_hold_says_what_to_do(tmp_path: Path, days: int, name: str, advice: str) -> None:
    """A Pi has no clock of its own: until it has asked the network, it may be years off."""
    write(tmp_path / "ca", authority := create_authority("site", now=datetime.now(UTC) - timedelta(days=2000)))
    write(tmp_path / "server", issue_server_certificate(authority, [name], now=datetime.now(UTC) + timedelta(days=days)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    events: list[TransportEvent] = []
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        address = BrokerAddress(host="localhost", port=server.getsockname()[1], tls=TlsFiles(ca=tmp_path / "ca.crt"))
        transport = MqttTransport(address, client_id="clock", on_event=events.append)
        transport.start()
        refused = pool.submit(_shake_hands, server, context)
        assert refused.result(30) is False
        wait_until(lambda: bool(events))
        transport.stop(0.0)
    assert isinstance(events[0], Disconnected)
    assert advice in events[0].reason


def _shake_hands(server: socket.socket, context: ssl.SSLContext) -> bool:
    link, _ = server.accept()
    with link:
        try:
            context.wrap_socket(link, server_side=True).close()
        except (ssl.SSLError, OSError):
            return False
    return True


@pytest.mark.mosquitto
def test_large_payloads_cross_whole_in_both_directions(broker: TlsBroker) -> None:
    sender, _ = started(broker.address("node-0"), "node-0")
    receiver, events = started(broker.address("aggregator"), "aggregator")
    receiver.subscribe(["t/+"])
    payloads = [bytes([index]) * (1 + index * 70_001) for index in range(20)]
    for payload in payloads:
        sender.publish("t/0", payload, retain=True)
    sender.publish("t/1", b"end", retain=True)
    wait_until(lambda: any(isinstance(event, Delivered) and event.topic == "t/1" for event in list(events)))
    received = [event.payload for event in events if isinstance(event, Delivered) and event.topic == "t/0"]
    # The subscription may come after the first publishes: then it begins with the one retained.
    assert received == payloads[len(payloads) - len(received) :]
    assert received
    for transport in (sender, receiver):
        transport.stop(30.0)


@pytest.mark.mosquitto
# paho drops a socket whose handshake failed without closing it; reference counting does so at once.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fault", ["foreign authority", "no certificate", "wrong host name"])
def test_a_failed_handshake_is_told_and_tried_again(broker: TlsBroker, fault: str) -> None:
    """A clock that is set later may cure it, so the node does not give up."""
    address = {
        "foreign authority": lambda: broker.address("foreign", authority=create_authority("other", now=datetime.now(UTC))),
        "no certificate": lambda: broker.address("bare", has_certificate=False),
        "wrong host name": lambda: broker.address("elsewhere", host="127.0.0.1"),
    }[fault]()
    events: list[TransportEvent] = []
    transport = MqttTransport(address, client_id="refused", on_event=events.append)
    transport.start()
    wait_until(lambda: len(events) >= 2)
    transport.stop(0.0)
    assert all(isinstance(event, Disconnected) for event in events)
    first = events[0]
    assert isinstance(first, Disconnected)
    expected = {"foreign authority": "accept our certificate", "no certificate": "accept our certificate", "wrong host name": "mismatch"}
    assert expected[fault] in first.reason
