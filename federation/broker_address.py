"""Where the broker is, who we are there, and what its refusals mean."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from federation.environment import BrokerEnvironment
from federation.errors import TransportError


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The files that TLS needs; without certificate and key only the broker proves who it is."""

    ca: Path
    certificate: Path | None = None
    key: Path | None = None

    def make_context(self) -> ssl.SSLContext:
        """Return a context that checks the broker's certificate and name, and shows ours.

        Raises:
            TransportError: a file can't be read or used; the text names it.
        """
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except OSError as error:
            raise TransportError(
                f"{self.ca}: not a usable certificate authority ({error}): set FEDMQ_TLS_CA to the site's ca.crt"
            ) from None
        if self.certificate is not None:
            try:
                context.load_cert_chain(self.certificate, self.key)
            except OSError as error:
                raise TransportError(
                    f"{self.certificate}, {self.key}: not a usable certificate and key ({error}): `fedmq node add` makes them"
                ) from None
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAddress:
    """How to reach a broker."""

    host: str
    port: int
    username: str | None = None
    password: str | None = None
    tls: TlsFiles | None = None

    @classmethod
    def from_environment(cls, environment: BrokerEnvironment) -> BrokerAddress:
        """Return the address that a process's settings name."""
        tls = None
        if environment.tls_ca is not None:
            tls = TlsFiles(ca=environment.tls_ca, certificate=environment.tls_certificate, key=environment.tls_key)
        return cls(
            host=environment.broker_host,
            port=environment.port,
            username=environment.broker_username,
            password=environment.password,
            tls=tls,
        )

    def __repr__(self) -> str:
        """Show no password: an address is logged."""
        return f"{'mqtts' if self.tls else 'mqtt'}://{f'{self.username}@' if self.username else ''}{self.host}:{self.port}"


X509_NOT_YET_VALID, X509_EXPIRED, X509_HOST_MISMATCH = 9, 10, 62
"""OpenSSL's verification codes (openssl-verification-options(1)) that an operator can do something about."""

SESSION_TAKEN_OVER = 0x8E
NO_SUBSCRIPTION_EXISTED = 0x11

IDENTITY_TAKEN = "another client connected to the broker with this identity: give every node a name and certificate of its own"

REFUSALS: Mapping[int, str] = MappingProxyType(
    {
        0x84: "the broker does not speak MQTT 5: run Mosquitto 2.0 or later",
        0x85: "the broker does not accept the client identifier",
        0x86: "the broker does not accept the user name or password: check FEDMQ_BROKER_USERNAME and FEDMQ_BROKER_PASSWORD_FILE",
        0x87: "the broker does not let this client in (not authorised): check user name, password or certificate, or enrol the node again",
        0x8A: "the broker has banned this client",
        0x8C: "the broker wants another way of logging in",
    }
)
"""CONNACK reason codes (MQTT 5, section 3.2.2.2) that trying again does not cure. With others we try again."""


def explain_unreachable(address: BrokerAddress, error: Exception) -> str:
    """Return why a broker can't be reached, as a sentence, with what to do where that is known."""
    text = f"can't reach {address!r}: {error}"
    if not isinstance(error, ssl.SSLCertVerificationError):
        return text
    advice = {
        X509_NOT_YET_VALID: "by this device's clock the broker's certificate is not valid yet: set the clock (NTP)",
        X509_EXPIRED: "by this device's clock the broker's certificate has expired: set the clock (NTP) if it is wrong, or renew the "
        "certificate on the server (`fedmq init HOST --renew-server`)",
        X509_HOST_MISMATCH: "the broker's certificate is for another name: set FEDMQ_BROKER_HOST to a name it was made for, or make one "
        "for this name on the server (`fedmq init HOST --renew-server`)",
    }.get(error.verify_code)
    return f"{text}; {advice}" if advice else text
