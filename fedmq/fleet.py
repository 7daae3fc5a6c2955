"""What is known of a site's nodes: enrolment from the site's files, presence from the broker's retained messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from federation import topics
from federation.broker_address import BrokerAddress, TlsFiles
from federation.errors import RemoteProtocolError
from federation.messages import NodeStatus, RoundResult, parse
from fedmq import revocation
from fedmq.enrolment import Enrolment, enrolments
from fedmq.observer import read_retained
from fedmq.site import OBSERVER, Site

FILTERS = (topics.status_filter("+"), f"{topics.PREFIX}/+/rounds/+/result")


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetNode:
    """One enrolled node."""

    name: str
    revoked: bool
    expires: datetime
    online: bool | None = None
    """None where the broker holds no status of it, or was not asked."""
    run: str | None = None
    """Of the status, the online one if there are several."""
    last_round: int | None = None
    """Last round in which an update of it was accepted: when the federation last saw it at work."""
    problem: str = ""
    """Why it sits rounds out, in its own words."""


def enrolled_nodes(site: Site) -> list[FleetNode]:
    """Return the nodes as the site's files know them."""
    return [_from_enrolment(enrolment) for enrolment in enrolments(site)]


def observe_nodes(site: Site, broker: revocation.BrokerAddress) -> list[FleetNode]:
    """Return the nodes with what the broker holds of them.

    Raises:
        TransportError: the broker can't be reached or refuses the observer.
    """
    address = BrokerAddress(
        host=broker.host,
        port=broker.port,
        username=OBSERVER,
        password=(site.folder / "secrets" / "observer_password").read_text(encoding="utf-8"),
        tls=TlsFiles(ca=site.certificate_file),
    )
    _, messages = read_retained(address, FILTERS)
    return merge_presence(enrolled_nodes(site), messages)


def merge_presence(nodes: Iterable[FleetNode], messages: Mapping[str, bytes]) -> list[FleetNode]:
    """Return the nodes with what retained messages (topic -> payload) say of them; unreadable ones are passed over."""
    found = {node.name: node for node in nodes}
    for text, payload in messages.items():
        try:
            topic = topics.parse_topic(text)
            if isinstance(topic, topics.StatusTopic) and topic.node in found:
                found[topic.node] = _with_status(found[topic.node], topic.run, parse(NodeStatus, payload))
            elif isinstance(topic, topics.ResultTopic):
                _note_work(found, parse(RoundResult, payload))
        except RemoteProtocolError:
            continue
    return list(found.values())


def _with_status(node: FleetNode, run: str, status: NodeStatus) -> FleetNode:
    if node.online:
        return node
    return replace(node, online=status.online, run=run, problem=status.problem)


def _note_work(found: dict[str, FleetNode], result: RoundResult) -> None:
    for outcome in result.outcomes:
        node = found.get(outcome.node)
        if node is not None and outcome.outcome == "accepted":
            found[outcome.node] = replace(node, last_round=max(node.last_round or 0, result.round_number))


def _from_enrolment(enrolment: Enrolment) -> FleetNode:
    return FleetNode(name=enrolment.name, revoked=enrolment.revoked, expires=enrolment.expires)
