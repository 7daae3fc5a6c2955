"""The operator's wishes over a whole federation: they reach aggregators that start later, and cost no digest."""

from __future__ import annotations

from pathlib import Path

from federation import topics
from federation.memory_transport import InMemoryTransport
from federation.messages import Control, RunState, parse
from tests.machines.federation_pair import FederationPair
from tests.machines.test_federation import assert_whole

TOPIC = str(topics.ControlTopic("pair"))
DAY_SECONDS = 86_400.0


def wish(pair: FederationPair, control: Control) -> None:
    """Leave a wish on the broker, as `fedmq pause|resume|stop` do."""
    operator = InMemoryTransport(pair.broker, client_id=f"operator-{control.wanted}", on_event=lambda _event: None)
    operator.start()
    operator.publish(TOPIC, control.to_payload(), retain=True)
    pair.broker.deliver()


def state_of(pair: FederationPair) -> RunState:
    return parse(RunState, pair.broker.retained[str(topics.StateTopic("pair"))])


def test_run_paused_for_a_day_and_two_restarts_goes_on_to_the_same_digest(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path)
    pair.start()
    pair.run(until=lambda: "fedmq/v2/pair/rounds/2/plan" in pair.broker.retained)
    wish(pair, Control(run="pair", wanted="pause", reason="scanner maintenance"))
    pair.run(until=lambda: state_of(pair).phase == "paused")
    assert state_of(pair).reason == "paused: scanner maintenance"
    assert TOPIC in pair.broker.retained
    assert "fedmq/v2/pair/rounds/2/result" in pair.broker.retained, "the round that was open has ended"
    for name in ("aggregator", "n1"):
        pair.kill(name)
    pair.now += DAY_SECONDS
    pair.start_node("n1")
    pair.start_aggregator(is_resuming=True)
    for _ in range(200):
        pair.step()
        pair.now += 1.0
    assert state_of(pair).phase == "paused"
    assert "fedmq/v2/pair/rounds/3/plan" not in pair.broker.retained
    wish(pair, Control(run="pair", wanted="resume"))
    pair.run()
    assert_whole(pair)
    assert TOPIC not in pair.broker.retained


def test_stopped_run_is_continued_with_its_open_round_to_the_same_digest(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path)
    pair.start()
    pair.run(until=lambda: "fedmq/v2/pair/rounds/2/updates/n1/manifest" in pair.broker.retained)
    wish(pair, Control(run="pair", wanted="stop", reason="wrong data set"))
    pair.run()
    assert pair.aggregator_service.stopped is not None
    assert not pair.aggregator_service.stopped.failed
    assert (state_of(pair).phase, state_of(pair).reason) == ("stopped", "stopped: wrong data set")
    assert TOPIC not in pair.broker.retained, "or the next aggregator would stop, too"
    pair.kill("aggregator")
    pair.start_aggregator(is_resuming=True)
    pair.run(until=lambda: state_of(pair).phase == "training")
    for node in pair.nodes:
        pair.kill(node)
        pair.start_node(node)
    pair.run()
    assert_whole(pair)
