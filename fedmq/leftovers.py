"""Clears what a revoked node has left on the broker: nobody else may write its topics, and what is retained outlives its sender.

Kept is what a round's result vouches for: an update that was accepted belongs to the run's record, whoever sent it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from federation import topics
from federation.broker_address import BrokerAddress, TlsFiles
from federation.errors import RemoteProtocolError, TransportError
from federation.messages import RoundResult, parse
from federation.mqtt import MqttTransport
from fedmq import certificates, revocation
from fedmq.observer import read_retained
from fedmq.site import OBSERVER, Site, write_private

CLEAR_SECONDS = 30.0
"""For ten thousand small publishes; a sound broker takes a few of these."""


def clear_leftovers(
    site: Site, name: str, *, fleet: revocation.BrokerAddress, observers: revocation.BrokerAddress, now: datetime
) -> list[str]:
    """Clear a revoked node's statuses, metrics and updates in every run; return their topics.

    Done under the node's own name, with a throw-away certificate: the access list lets no other write them, and so it needs no more rights
    than the revocation itself.

    Args:
        site: with the authority that signs that certificate.
        name: the node's, revoked and thrown out already.
        fleet: the listener of the nodes.
        observers: the listener of those who look on.
        now: the time.

    Raises:
        TransportError: the broker can't be reached, or did not take it in time.
    """
    password = (site.folder / "secrets" / "observer_password").read_text(encoding="utf-8")
    tls = TlsFiles(ca=site.certificate_file)
    reader = BrokerAddress(host=observers.host, port=observers.port, username=OBSERVER, password=password, tls=tls)
    runs = f"{topics.PREFIX}/+"
    own = [f"{runs}/nodes/{name}/#", f"{runs}/metrics/{name}/#", f"{runs}/rounds/+/updates/{name}/#"]
    _, retained = read_retained(reader, [*own, f"{runs}/rounds/+/result"])
    found = leftovers(name, retained)
    if not found:
        return []
    identity = certificates.issue_client_certificate(site.authority, name, now=now, days=1)
    with tempfile.TemporaryDirectory() as folder:  # 0700
        certificate, key = Path(folder) / "node.crt", Path(folder) / "node.key"
        write_private(certificate, identity.certificate)
        write_private(key, identity.key)
        writer = BrokerAddress(host=fleet.host, port=fleet.port, tls=TlsFiles(ca=site.certificate_file, certificate=certificate, key=key))
        transport = MqttTransport(writer, client_id=name, on_event=lambda _event: None, session_expiry_seconds=0)
        transport.start()
        for topic in found:
            transport.publish(topic, b"", retain=True)
        transport.stop(CLEAR_SECONDS)
    if transport.num_pending:
        raise TransportError(
            f"node {name!r} is out, but {transport.num_pending} of the {len(found)} messages it left on the broker could not be cleared: "
            f"run `fedmq node revoke {name}` again"
        )
    return found


def leftovers(name: str, retained: Mapping[str, bytes]) -> list[str]:
    """Return which retained topics (topic -> payload, results among them) are a node's, and vouched for by no result."""
    vouched = {vouched for topic, payload in retained.items() if (vouched := _accepted(name, topic, payload)) is not None}
    found = []
    for topic in sorted(retained):
        levels = topic.split("/")
        if levels[-1] == "result" and len(levels) == 6:
            continue
        if tuple(levels[2:5]) not in vouched:
            found.append(topic)
    return found


def _accepted(name: str, topic: str, payload: bytes) -> tuple[str, ...] | None:
    """Return run and round, as levels, of a result that accepted the node's update."""
    try:
        if not isinstance(topics.parse_topic(topic), topics.ResultTopic):
            return None
        result = parse(RoundResult, payload)
    except RemoteProtocolError:
        return None
    is_accepted = any(outcome.node == name and outcome.outcome == "accepted" for outcome in result.outcomes)
    return (result.run, "rounds", str(result.round_number)) if is_accepted else None
