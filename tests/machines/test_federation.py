"""A whole federation over the in-memory transport: whatever happens on the way, the digest is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregator.open_round import MAX_RESTORED
from federation import topics
from federation.codec import digest, file_digest
from federation.faults import seeded_faults
from federation.memory_transport import InMemoryBroker
from federation.messages import RoundResult, UpdateManifest, parse
from federation.transport import Delivered
from tests.machines.federation_pair import FederationPair, initial_params


def expected_digest(*, num_nodes: int = 3, num_rounds: int = 3) -> str:
    """Work the run out by hand: FedAvg of what `ArithmeticLearner` does, in float64, in node order."""
    params = initial_params()
    for round_number in range(1, num_rounds + 1):
        nodes = [f"n{index}" for index in range(num_nodes)]
        examples = [10 + ord(node[-1]) for node in nodes]
        shifts = [np.float32(0.1 * round_number + 0.01 * len(node) + 0.001 * ord(node[-1])) for node in nodes]
        for name, tensor in params.items():
            total = np.zeros(tensor.shape)
            for num_examples, shift in zip(examples, shifts, strict=True):
                total += num_examples * (tensor + shift).astype(np.float64)
            params[name] = (total / sum(examples)).astype(np.float32)
    return digest(params)


def results(pair: FederationPair) -> list[RoundResult]:
    found = []
    for name, payload in pair.broker.retained.items():
        if isinstance(topics.parse_topic(name), topics.ResultTopic):
            found.append(parse(RoundResult, payload))
    return sorted(found, key=lambda result: result.round_number)


def assert_whole(pair: FederationPair, *, num_rounds: int = 3) -> None:
    """Assert that the run ended well with the right model and one outcome per node and round."""
    stopped = pair.aggregator_service.stopped
    assert stopped is not None
    assert not stopped.failed, stopped.reason
    assert pair.global_digest == expected_digest(num_rounds=num_rounds)
    for result in results(pair):
        assert [outcome.node for outcome in result.outcomes] == pair.nodes
        assert result.accepted == len(pair.nodes)


def test_sound_run_gives_the_digest_worked_out_by_hand(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path)
    pair.start()
    pair.run()
    assert_whole(pair)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["global_digest"] == expected_digest()
    assert [entry["accepted"] for entry in summary["rounds"]] == [3, 3, 3]
    assert len(results(pair)) == 3


def test_every_node_ends_with_the_final_model(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path)
    pair.start()
    pair.run(until=lambda: all(seat.service and seat.service.stopped for seat in pair.seats.values()))
    for node in pair.nodes:
        assert file_digest(tmp_path / node / "pair" / "4" / "global.safetensors") == expected_digest()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000))
def test_drops_duplicates_and_reordering_change_nothing(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Chunks, manifests, plans and acks may all vanish on the way to a subscriber; retained ones are fetched again."""
    faults = seeded_faults(
        seed,
        drop=0.1,
        duplicate=0.1,
        reorder=0.2,
        affects=lambda topic: "/chunks/" in topic or topic.endswith("/manifest") or "/acks/" in topic,
    )
    pair = FederationPair(tmp_path_factory.mktemp("pair"), broker=InMemoryBroker(max_packet_bytes=4096, faults=faults))
    pair.start()
    pair.run()
    assert_whole(pair)


MOMENTS: dict[str, Callable[[FederationPair], bool]] = {
    "before the round": lambda pair: pair.now > 0,
    "plan out": lambda pair: any(name.endswith("rounds/2/plan") for name in pair.broker.retained),
    "first chunk up": lambda pair: any("rounds/2/updates" in name and "chunks" in name for name in pair.broker.retained),
    "manifest up": lambda pair: any("rounds/2/updates" in name and name.endswith("manifest") for name in pair.broker.retained),
    "result out": lambda pair: any(name.endswith("rounds/2/result") for name in pair.broker.retained),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_node_comes_back_and_the_digest_is_the_same(tmp_path: Path, moment: str) -> None:
    pair = FederationPair(tmp_path)
    pair.start()
    pair.run(until=lambda: MOMENTS[moment](pair) or pair.is_over)
    pair.kill("n1")
    for _ in range(20):
        pair.step()
    pair.start_node("n1")
    pair.run()
    assert_whole(pair)


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_aggregator_resumes_and_the_digest_is_the_same(tmp_path: Path, moment: str) -> None:
    pair = FederationPair(tmp_path)
    pair.start()
    pair.run(until=lambda: MOMENTS[moment](pair) or pair.is_over)
    pair.kill("aggregator")
    for _ in range(20):
        pair.step()
    pair.start_aggregator(is_resuming=True)
    pair.run()
    assert_whole(pair)


@pytest.mark.parametrize("persistence", [True, False])
@pytest.mark.parametrize("moment", MOMENTS)
def test_restarted_broker_gets_back_what_it_lost(tmp_path: Path, moment: str, *, persistence: bool) -> None:
    pair = FederationPair(tmp_path)
    pair.start()
    pair.run(until=lambda: MOMENTS[moment](pair) or pair.is_over)
    pair.broker.stop()
    for _ in range(5):
        pair.step()
    pair.broker.restart(persistence=persistence)
    pair.run()
    stopped = pair.aggregator_service.stopped
    assert stopped is not None
    assert not stopped.failed
    assert pair.global_digest == expected_digest()


@pytest.mark.parametrize("moment", MOMENTS)
def test_cut_link_goes_on_where_it_was(tmp_path: Path, moment: str) -> None:
    pair = FederationPair(tmp_path)
    pair.start()
    pair.run(until=lambda: MOMENTS[moment](pair) or pair.is_over)
    pair.broker.sever("pair-n2", num_unacknowledged=3)
    for _ in range(10):
        pair.step()
    pair.broker.mend("pair-n2")
    pair.run()
    assert_whole(pair)


def test_restarted_node_does_not_train_a_finished_update_again(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=1)
    pair.start()
    pair.run(until=lambda: (tmp_path / "n1" / "pair" / "1" / "update.json").exists())
    pair.kill("n1")
    pair.start_node("n1")
    pair.run()
    assert pair.global_digest == expected_digest(num_rounds=1)
    assert pair.learners["n1"].num_trainings == 1


def test_node_restarted_after_its_ack_offers_the_same_update_in_the_same_words(tmp_path: Path) -> None:
    """The round is still open; what the broker retains of it must stay what the result vouches for."""
    pair = FederationPair(tmp_path, num_rounds=2)
    pair.start()
    pair.run(until=lambda: "fedmq/v2/pair/rounds/1/plan" in pair.broker.retained)
    pair.kill("n2")
    pair.run(until=lambda: (tmp_path / "n1" / "pair" / "2").exists())
    manifest = pair.broker.retained["fedmq/v2/pair/rounds/1/updates/n1/manifest"]
    pair.kill("n1")
    pair.now += 60.0
    pair.start_node("n1")
    for _ in range(100):
        pair.step()
        pair.now += 0.1
    assert pair.broker.retained["fedmq/v2/pair/rounds/1/updates/n1/manifest"] == manifest
    assert pair.learners["n1"].num_trainings == 1
    pair.start_node("n2")
    pair.run()
    assert_whole(pair, num_rounds=2)


@pytest.mark.parametrize("is_another", [False, True])
def test_what_the_broker_holds_of_an_accepted_update_stays(tmp_path: Path, *, is_another: bool) -> None:
    """A twin, or a node that lost its disk, trains again in the open round and puts its own in place of what was accepted."""
    pair = FederationPair(tmp_path)
    pair.start()
    pair.run(until=lambda: "fedmq/v2/pair/rounds/1/plan" in pair.broker.retained)
    pair.kill("n2")
    pair.run(until=lambda: (tmp_path / "n1" / "pair" / "2").exists())
    own = topics.update_prefix("pair", 1, "n1")
    accepted = {name: payload for name, payload in pair.broker.retained.items() if name.startswith(own)}
    name = f"{own}manifest"
    manifest = parse(UpdateManifest, accepted[name])
    transport = pair.seats["n1"].transport
    assert transport is not None
    num_restored = 0
    for _ in range(MAX_RESTORED + 2):
        changes: dict[str, object] = {"metrics": manifest.metrics.model_copy(update={"train_seconds": 77.0})}
        if is_another:
            changes["sha256"] = "a" * 64
            transport.publish(f"{own}chunks/0", b"another's", retain=True)
        transport.publish(name, manifest.model_copy(update=changes).to_payload(), retain=True)
        for _ in range(50):
            pair.step()
        num_restored += {other: payload for other, payload in pair.broker.retained.items() if other.startswith(own)} == accepted
    # Not for ever: a node must not make the aggregator send without end.
    assert num_restored == MAX_RESTORED
    transport.publish(name, accepted[name], retain=True)
    pair.start_node("n2")
    pair.run()
    assert [result.accepted for result in results(pair)] == [3, 3, 3]


def test_straggler_is_left_behind_and_told(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=2, min_nodes=2, quorum=0.6, grace_seconds=50.0)
    pair.start()
    pair.run(until=lambda: MOMENTS["before the round"](pair) and any(name.endswith("rounds/1/plan") for name in pair.broker.retained))
    pair.kill("n2")
    pair.run()
    first, second = results(pair)
    assert (first.accepted, first.discarded, first.stragglers) == (2, 1, 1)
    assert next(outcome for outcome in first.outcomes if outcome.node == "n2").reason == "late"
    # The dead node is no longer drawn.
    assert [outcome.node for outcome in second.outcomes] == ["n0", "n1"]


def test_results_name_each_other(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path)
    pair.start()
    pair.run()
    previous = None
    for result in results(pair):
        assert result.previous_result_digest == previous
        previous = hashlib.sha256(result.to_payload()).hexdigest()


def test_nodes_whose_connection_lasts_are_known_to_an_aggregator_that_finds_nothing_retained(tmp_path: Path) -> None:
    """They published their status only on connecting: the run hung with every node connected."""
    pair = FederationPair(tmp_path)
    pair.start()
    pair.run(until=lambda: any(name.endswith("rounds/2/plan") for name in pair.broker.retained))
    pair.kill("aggregator")
    for name in [name for name in pair.broker.retained if name.endswith("/status")]:
        pair.broker.clear(name)
    pair.start_aggregator(is_resuming=True)
    pair.run()
    assert_whole(pair)


def test_zombie_aggregator_stops_itself(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path)
    pair.start()
    pair.run(until=lambda: MOMENTS["plan out"](pair))
    zombie = pair.aggregator_service
    pair.broker.sever("pair-aggregator")
    pair.aggregator.kill()
    pair.start_aggregator(is_resuming=True)
    pair.run(until=lambda: pair.aggregator_service._coordinator.phase.name == "COLLECTING")
    pair.broker.deliver()
    state_payload = pair.broker.retained[str(topics.StateTopic("pair"))]
    zombie.take(Delivered(topic=str(topics.StateTopic("pair")), payload=state_payload, retained=False))
    assert zombie.stopped is not None
    assert zombie.stopped.failed
    assert "another aggregator" in zombie.stopped.reason
    pair.run()
    assert_whole(pair)
