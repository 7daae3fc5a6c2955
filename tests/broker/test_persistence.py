"""What survives the broker's death: retained rounds and the sessions of nodes that are away."""

from __future__ import annotations

import time

import pytest

from federation import topics
from fedmq.private_broker import PrivateBroker
from tests.broker.client import connected

SAVE_TRIES = 3_000
TRY_SECONDS = 0.01
"""Half a minute, three times what broker/mosquitto.conf promises: a broker that saves every half hour fails."""


def wait_until_saved(broker: PrivateBroker, payload: bytes) -> None:
    """Return once the broker's own file holds the payload."""
    for _ in range(SAVE_TRIES):
        if any(payload in path.read_bytes() for path in broker.folder.glob("broker.db")):
            return
        time.sleep(TRY_SECONDS)
    raise AssertionError("the broker did not save the message by itself")


@pytest.mark.slow
def test_a_killed_broker_brings_back_retained_messages_and_sessions(own_mosquitto: PrivateBroker, run_name: str) -> None:
    """Killed, not stopped: what comes back is what it saved on its own within seconds."""
    plan, ack = str(topics.PlanTopic(run_name, 1)), str(topics.AckTopic(run_name, 1, "node-0"))
    with connected(own_mosquitto, "node-0", session="node-0") as node:
        node.subscribe(ack)
    with connected(own_mosquitto, "aggregator") as aggregator:
        assert aggregator.publish(plan, b"plan of round 1")
        assert aggregator.publish(ack, b"accepted while away", retain=False)
    wait_until_saved(own_mosquitto, b"accepted while away")
    own_mosquitto.kill()
    own_mosquitto.start()
    with connected(own_mosquitto, "node-0", session="node-0") as node:
        assert node.receive_until(ack) == {ack: b"accepted while away"}
        node.subscribe(plan)
        assert node.receive_until(plan) == {plan: b"plan of round 1"}


def test_a_model_in_many_chunks_reaches_a_late_subscriber_whole(mosquitto: PrivateBroker, run_name: str) -> None:
    """More retained packets than the stock queue of 1,020 holds, for one subscription."""
    num_chunks = 1_500
    with connected(mosquitto, "aggregator") as aggregator:
        for index in range(num_chunks):
            assert aggregator.publish(str(topics.GlobalChunkTopic(run_name, 1, index)), index.to_bytes(2, "big"))
        manifest = str(topics.GlobalManifestTopic(run_name, 1))
        assert aggregator.publish(manifest, b"manifest")
    with connected(mosquitto, "node-0") as node:
        node.subscribe(f"fedmq/v2/{run_name}/rounds/1/global/chunks/+")
        node.subscribe(manifest)
        assert len(node.receive_until(manifest)) == num_chunks + 1
