"""Makes the running broker refuse a revoked node at once, and throw it out where it is connected.

Measured on Mosquitto 2.0.11 and 2.0.2x (tests/security/test_revocation.py): a new revocation list with SIGHUP refuses the
next handshake but leaves a connected node alone; the dynamic-security plugin throws it out, but lets it in again
with its certificate and knows no `%u`. So: the list, then a session take-over under the node's name. The broker
reloads by itself when the list changes (broker/start); this module waits until it has, by knocking with a
throw-away certificate that the same list revokes.
"""

from __future__ import annotations

import socket
import ssl
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from federation.errors import TransportError
from fedmq import certificates
from fedmq.certificates import Issued
from fedmq.enrolment import revoked_serial_numbers
from fedmq.site import Site, write_private

RELOAD_SECONDS = 20.0
"""broker/start looks once a second; a loaded Pi-sized server may need a few."""

POLL_SECONDS = 0.2
CONNECT_SECONDS = 5.0

_CONNACK_BYTES = 4
_CONNACK_ACCEPTED = b"\x20\x02\x00\x00"
_PROTOCOL_3_1_1 = b"\x00\x04MQTT\x04"
_CLEAN_SESSION = b"\x02"
_KEEP_ALIVE = b"\x00\x0a"
_DISCONNECT = b"\xe0\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAddress:
    """Where this machine reaches the site's TLS listener; the name must be in the server's certificate."""

    host: str
    port: int


def write_revocation_list(site: Site, *, now: datetime, also: tuple[int, ...] = ()) -> None:
    """Write the list the broker reads: every revoked certificate, and the serial numbers `also`."""
    serial_numbers = [*revoked_serial_numbers(site), *also]
    write_private(site.folder / "broker" / "crl.pem", certificates.create_revocation_list(site.authority, serial_numbers, now=now))


def enforce(
    site: Site,
    name: str,
    broker: BrokerAddress,
    *,
    now: datetime,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Write the revocation list, wait until the broker obeys it, and end the node's session, queue included.

    Returns only when the node is out and can't come back.

    Raises:
        TransportError: the broker can't be reached or did not take up the list; the text says what to run. The
            list stands: a broker that starts later obeys it.
    """
    authority = site.authority
    canary = certificates.issue_client_certificate(authority, name, now=now, days=1)
    taker = certificates.issue_client_certificate(authority, name, now=now, days=1)
    write_revocation_list(site, now=now, also=(certificates.serial_number(canary.certificate),))
    give_up = monotonic() + RELOAD_SECONDS
    while _lets_in(site, broker, canary, name=f"{name}-canary"):
        if monotonic() > give_up:
            raise TransportError(
                f"node {name!r} is on the revocation list, but the broker has not read it: "
                "run `docker compose kill -s HUP broker`, then this again"
            )
        sleep(POLL_SECONDS)
    if not _lets_in(site, broker, taker, name=name):
        raise TransportError(
            f"node {name!r} is refused from now on, but its session could not be ended: run `docker compose restart broker`"
        )


def _lets_in(site: Site, broker: BrokerAddress, identity: Issued, *, name: str) -> bool:
    """Connect as a client would, clean session, and leave; return whether the broker accepted.

    Raises:
        TransportError: there is no broker, or it is another site's.
    """
    context = _context(site, identity)
    try:
        with socket.create_connection((broker.host, broker.port), timeout=CONNECT_SECONDS) as plain:
            return _log_in(context, plain, broker.host, name)
    except ssl.SSLCertVerificationError as error:
        raise TransportError(
            f"{broker.host}:{broker.port} is not this site's broker ({error.verify_message}): give --broker HOST:PORT, "
            f"or add the name with `fedmq init --renew-server`"
        ) from None
    except OSError as error:
        raise TransportError(
            f"the broker at {broker.host}:{broker.port} can't be reached ({error}): "
            "start it with `docker compose up -d broker`, or give --broker HOST:PORT"
        ) from None


def _log_in(context: ssl.SSLContext, plain: socket.socket, host: str, name: str) -> bool:
    try:
        connection = context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLError as error:
        if error.reason == "SSLV3_ALERT_CERTIFICATE_REVOKED":
            return False
        raise
    with connection:
        client_id = name.encode()
        body = _PROTOCOL_3_1_1 + _CLEAN_SESSION + _KEEP_ALIVE + len(client_id).to_bytes(2, "big") + client_id
        connection.sendall(bytes([0x10, len(body)]) + body)
        reply = connection.recv(_CONNACK_BYTES)
        if reply != _CONNACK_ACCEPTED:
            raise ConnectionError(f"answered {reply.hex() or 'nothing'} to CONNECT")
        connection.sendall(_DISCONNECT)
    return True


def _context(site: Site, identity: Issued) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(site.certificate_file))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Under TLS 1.3 the handshake ends before the broker has judged the certificate, and the refusal can get lost.
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with tempfile.TemporaryDirectory() as folder:  # 0700; `ssl` reads identities from files only
        path = Path(folder) / "identity.pem"
        write_private(path, identity.certificate + identity.key)
        context.load_cert_chain(path)
    return context
