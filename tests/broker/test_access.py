"""Who the broker lets in, and what each user may write and read: broker/acl against a real Mosquitto."""

from __future__ import annotations

import pytest

from federation import topics
from fedmq.private_broker import PrivateBroker
from tests.broker.client import BrokerClient, connected

NODE = "node-0"
OTHER = "node-1"


def written_by(run: str, node: str) -> list[str]:
    """Every topic that `node` writes."""
    return [
        str(topics.StatusTopic(run, node)),
        str(topics.UpdateChunkTopic(run, 1, node, 0)),
        str(topics.UpdateManifestTopic(run, 1, node)),
        str(topics.MetricsTopic(run, node)),
    ]


def written_by_aggregator(run: str) -> list[str]:
    """Every topic that the aggregator writes, the acks as node 0's."""
    return [
        str(topics.StateTopic(run)),
        str(topics.AggregatorTopic(run)),
        str(topics.PlanTopic(run, 1)),
        str(topics.GlobalChunkTopic(run, 1, 0)),
        str(topics.GlobalManifestTopic(run, 1)),
        str(topics.AckTopic(run, 1, NODE)),
    ]


def written_for_operators(run: str) -> list[str]:
    """What the aggregator writes and no node reads: every node's figures, and the operator's wishes."""
    return [str(topics.ResultTopic(run, 1)), str(topics.ControlTopic(run))]


@pytest.mark.parametrize(
    ("user", "password"), [(None, None), (NODE, "wrong"), (NODE, ""), ("stranger", "x"), ("aggregator", "aggregator"), ("observer", "")]
)
def test_nobody_gets_in_without_the_password(mosquitto: PrivateBroker, user: str | None, password: str | None) -> None:
    client = BrokerClient(mosquitto, user, password)
    try:
        assert client.connect() == "Not authorized"
    finally:
        client.close()


def test_a_password_opens_its_own_account_alone(mosquitto: PrivateBroker) -> None:
    client = BrokerClient(mosquitto, OTHER, mosquitto.passwords[NODE])
    try:
        assert client.connect() == "Not authorized"
    finally:
        client.close()


def test_a_node_writes_its_own_topics_and_the_aggregator_reads_them(mosquitto: PrivateBroker, run_name: str) -> None:
    with connected(mosquitto, "aggregator") as aggregator, connected(mosquitto, NODE) as node:
        aggregator.subscribe(f"fedmq/v2/{run_name}/#")
        own = written_by(run_name, NODE)
        assert [node.publish(topic, b"mine") for topic in own] == [True] * len(own)
        assert aggregator.receive_until(own[-1]) == dict.fromkeys(own, b"mine")


def test_a_node_can_write_nothing_else(mosquitto: PrivateBroker, run_name: str) -> None:
    """Another node's topics, the aggregator's, levels the protocol lacks, and other trees: refused, and not delivered."""
    foreign = [
        *written_by(run_name, OTHER),
        *written_by_aggregator(run_name),
        *written_for_operators(run_name),
        *written_by(run_name, "aggregator"),
        f"fedmq/v2/{run_name}/nodes/{NODE}/status/deeper",
        f"fedmq/v2/{run_name}/nodes/{NODE}",
        f"fedmq/v2/{run_name}/metrics/{NODE}/deeper",
        f"fedmq/v2/{run_name}/rounds/1/updates/{NODE}-2/manifest",
        f"fedmq/v3/{run_name}/metrics/{NODE}",
        f"{run_name}/anything",
        "$SYS/broker/version",
        "$CONTROL/dynamic-security/v1",
    ]
    allowed = str(topics.MetricsTopic(run_name, NODE))
    with connected(mosquitto, "aggregator") as aggregator, connected(mosquitto, NODE) as node:
        aggregator.subscribe(f"fedmq/v2/{run_name}/#")
        assert [topic for topic in foreign if node.publish(topic, b"forged")] == []
        assert node.publish(allowed, b"honest")
        assert aggregator.receive_until(allowed) == {allowed: b"honest"}


def test_a_node_reads_what_the_aggregator_tells_it(mosquitto: PrivateBroker, run_name: str) -> None:
    told = written_by_aggregator(run_name)
    with connected(mosquitto, "aggregator") as aggregator, connected(mosquitto, NODE) as node:
        node.subscribe(f"fedmq/v2/{run_name}/#")
        for topic in told:
            assert aggregator.publish(topic, b"told")
        assert node.receive_until(told[-1]) == dict.fromkeys(told, b"told")


@pytest.mark.parametrize(
    "everything",
    ["#", "fedmq/v2/+/rounds/+/updates/+/#", "fedmq/v2/+/nodes/+/status", "fedmq/v2/+/metrics/+", "fedmq/v2/+/rounds/+/result"],
)
def test_a_node_cannot_read_others(mosquitto: PrivateBroker, run_name: str, everything: str) -> None:
    """Retained messages arrive in the order of subscriptions, so a wanted one that came last shows what came before."""
    hidden = [*written_by(run_name, OTHER), str(topics.AckTopic(run_name, 1, OTHER)), *written_for_operators(run_name)]
    marker = str(topics.PlanTopic(run_name, 2))
    with connected(mosquitto, "aggregator") as aggregator, connected(mosquitto, NODE) as node:
        for topic in hidden:
            assert aggregator.publish(topic, b"secret")
        node.subscribe(everything)
        assert aggregator.publish(marker, b"seen")
        node.subscribe(marker)
        assert not set(node.receive_until(marker)) & set(hidden)


def test_the_brokers_own_figures_are_for_the_aggregator(mosquitto: PrivateBroker, run_name: str) -> None:
    version = "$SYS/broker/version"
    marker = str(topics.StateTopic(run_name))
    with connected(mosquitto, "aggregator") as aggregator, connected(mosquitto, NODE) as node:
        aggregator.subscribe("$SYS/#")
        assert aggregator.receive_until(version)[version].startswith(b"mosquitto")
        node.subscribe("$SYS/#", version)
        assert aggregator.publish(marker, b"seen")
        node.subscribe(marker)
        assert set(node.receive_until(marker)) == {marker}


def test_the_observer_reads_a_run_whole_and_writes_nothing(mosquitto: PrivateBroker, run_name: str) -> None:
    """Also not as a node named `observer`, which the patterns for nodes would otherwise let it be."""
    topics_of_run = [*written_by_aggregator(run_name), *written_for_operators(run_name), *written_by(run_name, NODE)]
    with connected(mosquitto, "aggregator") as aggregator, connected(mosquitto, "observer") as observer:
        forged = [*topics_of_run, *written_by(run_name, "observer")]
        assert [topic for topic in forged if observer.publish(topic, b"forged")] == []
        for topic in topics_of_run:
            assert aggregator.publish(topic, b"true")
        observer.subscribe(f"fedmq/v2/{run_name}/#")
        assert observer.receive_until(topics_of_run[-1]) == dict.fromkeys(topics_of_run, b"true")
