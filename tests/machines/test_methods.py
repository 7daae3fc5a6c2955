"""Every method and codec through the whole machinery: what comes out is what a few lines of arithmetic give, whatever happens."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregator.archive import Archive
from aggregator.broker_rounds import BrokerRounds
from aggregator.recovery import recover
from aggregator.replay import Replay
from edge_node.node_store import NodeMemory, NodeStore
from edge_node.work import LocalUpdate
from federation.codec import decode, digest, encode
from federation.learning.algorithms import ALGORITHMS, NodeState, Update, build_algorithm
from federation.learning.codecs import build_codec, flatten
from federation.learning.exchange import Exchange
from federation.learning.sets import Sets, TensorSet
from federation.messages import RoundPlan
from federation.topic_filter import matches
from tests.machines.federation_pair import ArithmeticLearner, FederationPair, initial_params
from tests.strategies.quadratic import QuadraticTrainer, held

NUM_ROUNDS = 4

SETTINGS: Mapping[str, dict[str, Any]] = {
    "class_aware": {"classifier": "weight"},
    "fedadam": {"server_learning_rate": 0.1},
    "fedbn": {"personal_layers": ["bias"]},
    "feddyn": {"alpha": 2.0},
    "fedper": {"personal_layers": ["bias"]},
    "fedrep": {"personal_layers": ["bias"]},
}

CASES: tuple[tuple[str, str], ...] = (
    *((method, "float32") for method in sorted(ALGORITHMS)),
    ("fedavg", "float16"),
    ("fedavg", "int8"),
    ("fedavg", "topk"),
    ("scaffold", "topk"),
)
"""Method and codec."""


def trainer_of(node: str) -> QuadraticTrainer:
    index = int(node[1:])
    trainer = QuadraticTrainer(node, optimum=0.5 * (index % 3) - 0.5, num_examples=10 + index, steepness=1.0 + 0.25 * index)
    trainer.initial = TensorSet(initial_params())
    trainer.label_counts = None if index == 1 else [10 + index] + [index] * 79
    return trainer


class MethodLearner(ArithmeticLearner):
    """Lets the plan's method train on a parabola."""

    def train(self, plan: RoundPlan, sets: Sets, kept: NodeState, should_stop: Callable[[], bool]) -> LocalUpdate:  # noqa: ARG002
        """Return the method's update."""
        self.num_trainings += 1
        algorithm = build_algorithm(plan.method.name, plan.method.settings, num_nodes=plan.num_nodes)
        update = algorithm.train(trainer_of(self._node), sets, kept)
        return LocalUpdate(sets=update.sets, num_examples=update.num_examples, loss=1.0, train_seconds=1.0, samples_per_second=10.0)


def federation(folder: Path, method: str, codec: str, **rounds: Any) -> FederationPair:
    chosen = {"name": method, **SETTINGS.get(method, {})}
    num_nodes = max(3, ALGORITHMS[method].min_updates)
    pair = FederationPair(folder, num_nodes=num_nodes, num_rounds=NUM_ROUNDS, method=chosen, codec={"name": codec}, **rounds)
    for node in pair.nodes:
        pair.learners[node] = MethodLearner(node)
    return pair


def by_hand(method: str, codec_name: str, nodes: Sequence[str]) -> Sets:
    """Return the sets after the run, without broker, files, plans or restarts."""
    algorithm = build_algorithm(method, SETTINGS.get(method, {}), num_nodes=len(nodes))
    codec, memory = build_codec(codec_name, {}), {node: NodeMemory() for node in nodes}
    sets = held(algorithm.start(TensorSet(initial_params())))
    for round_number in range(1, NUM_ROUNDS + 1):
        down = sets.only(algorithm.down)
        exchange = Exchange(algorithm, codec, down.signatures)
        updates = []
        for node in nodes:
            update = algorithm.train(trainer_of(node), down, memory[node].method)
            wire = exchange.encode(update.sets, down, kept=memory[node].codec, purpose=f"0/{round_number}/{node}")
            received = decode(encode(wire), exchange.update_signature)
            updates.append(Update(node=node, num_examples=update.num_examples, sets=exchange.decode(received, down)))
            # As a file holds it: float32.
            memory[node].method = {name: tensors.held() for name, tensors in memory[node].method.items()}
        sets = held(algorithm.aggregate(sets, updates))
    return sets


def expected(method: str, codec: str, nodes: Sequence[str]) -> str:
    sets = by_hand(method, codec, nodes)
    return digest(flatten(sets.only(ALGORITHMS[method].down)))


def assert_ended(pair: FederationPair, method: str, codec: str) -> None:
    stopped = pair.aggregator_service.stopped
    assert stopped is not None
    assert not stopped.failed, stopped.reason
    assert pair.global_digest == expected(method, codec, pair.nodes)


@pytest.mark.parametrize(("method", "codec"), CASES)
def test_run_gives_what_arithmetic_gives_and_repeats_from_its_record(tmp_path: Path, method: str, codec: str) -> None:
    pair = federation(tmp_path, method, codec)
    pair.start()
    pair.run()
    assert_ended(pair, method, codec)
    records = list(Replay("pair", Archive(tmp_path / "out" / "rounds")).verify(range(1, NUM_ROUNDS + 1)))
    assert records[-1].result.next_global_digest == pair.global_digest


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("method", "codec"), [("fedadam", "float32"), ("fedper", "int8"), ("scaffold", "topk")])
def test_kills_of_everybody_at_any_step_change_nothing(tmp_path: Path, method: str, codec: str, seed: int) -> None:
    """A node that is killed neither loses nor doubles a step of what its method keeps there."""
    chance = np.random.default_rng(seed)
    pair = federation(tmp_path, method, codec, max_missed_rounds=1000)
    pair.start()
    for _ in range(25):
        for _ in range(int(chance.integers(1, 120))):
            if pair.is_over or not pair.step():
                break
        if pair.is_over:
            break
        victim = str(chance.choice(["aggregator", *pair.nodes]))
        pair.kill(victim)
        if victim == "aggregator":
            pair.start_aggregator(is_resuming=True)
        else:
            pair.start_node(victim)
    pair.run()
    assert_ended(pair, method, codec)


def test_state_of_an_update_that_did_not_count_is_reverted(tmp_path: Path) -> None:
    """Two of three nodes miss the first round's deadline, so nothing is aggregated of it: the third node's step never happened."""
    pair = federation(tmp_path, "scaffold", "float32", deadline_seconds=60.0, max_missed_rounds=1000)
    pair.start()
    pair.run(lambda: "fedmq/v2/pair/rounds/1/plan" in pair.broker.retained)
    for node in ("n1", "n2"):
        pair.kill(node)
    pair.run(lambda: "fedmq/v2/pair/rounds/1/result" in pair.broker.retained)
    assert NodeStore(tmp_path / "n0" / "pair").newest().method
    for node in ("n1", "n2"):
        pair.start_node(node)
    pair.run(lambda: "fedmq/v2/pair/rounds/3/plan" in pair.broker.retained)
    plan = RoundPlan.model_validate_json(pair.broker.retained["fedmq/v2/pair/rounds/2/plan"])
    assert plan.counted == {}
    kept = NodeStore(tmp_path / "n0" / "pair").newest().method["control"]
    algorithm = build_algorithm("scaffold", {}, num_nodes=3)
    once: dict[str, TensorSet] = {}
    algorithm.train(trainer_of("n0"), algorithm.start(TensorSet(initial_params())), once)
    np.testing.assert_array_equal(kept["weight"], once["control"]["weight"])


@pytest.mark.parametrize(("method", "codec"), [("fedadam", "float32"), ("scaffold", "int8")])
def test_run_goes_on_from_what_the_broker_holds(tmp_path: Path, method: str, codec: str) -> None:
    pair = federation(tmp_path, method, codec)
    pair.start()
    pair.run(lambda: "fedmq/v2/pair/rounds/3/plan" in pair.broker.retained)
    pair.kill("aggregator")
    shutil.rmtree(tmp_path / "aggregator")
    shutil.rmtree(tmp_path / "out")

    def read(filters: Sequence[str], **_: object) -> Iterator[tuple[str, bytes]]:
        for topic, payload in pair.broker.retained.items():
            if any(matches(topic_filter, topic) for topic_filter in filters):
                yield topic, payload

    found = recover(
        "pair", BrokerRounds("pair", read), state_dir=tmp_path / "aggregator", out_dir=tmp_path / "out", trusted_keys=None, now_ns=0
    )
    assert found.settings == pair.settings
    pair.start_aggregator(is_resuming=True)
    pair.run()
    assert_ended(pair, method, codec)


def test_node_that_does_not_know_the_method_sits_out_and_says_so(tmp_path: Path) -> None:
    pair = federation(tmp_path, "fedadam", "int8", min_nodes=2)
    pair.start_aggregator()
    for node in ("n0", "n1"):
        pair.start_node(node)
    pair.start_node("n2", capabilities=["fedavg", "float32"])
    pair.run()
    assert pair.aggregator_service.stopped is not None
    assert not pair.aggregator_service.stopped.failed
    plan = RoundPlan.model_validate_json(pair.broker.retained["fedmq/v2/pair/rounds/1/plan"])
    assert plan.cohort == ["n0", "n1"]
    assert (plan.method.name, plan.codec.name) == ("fedadam", "int8")


def test_int8_sends_a_quarter(tmp_path: Path) -> None:
    sizes = {}
    for codec in ("float32", "int8", "topk"):
        pair = federation(tmp_path / codec, "fedavg", codec)
        pair.start()
        pair.run()
        sizes[codec] = sum(len(payload) for topic, payload in pair.broker.retained.items() if "/rounds/1/updates/n0/chunks" in topic)
    assert sizes["int8"] < 0.3 * sizes["float32"]
    assert sizes["topk"] < 0.1 * sizes["float32"]
