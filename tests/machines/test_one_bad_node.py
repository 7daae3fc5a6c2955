"""One enrolled node that sends valid updates to do harm: the others' run goes on, the node is named, the record repeats."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from aggregator.archive import Archive
from aggregator.blame import blame
from aggregator.broker_rounds import BrokerRounds
from aggregator.replay import Replay, WhatIf
from edge_node.work import LocalUpdate
from federation.errors import ArchiveError
from federation.learning.algorithms import NodeState
from federation.learning.sets import Sets
from federation.messages import Evaluation, RoundPlan, RoundResult, parse
from federation.params import Params
from federation.topic_filter import matches
from tests.machines.federation_pair import ArithmeticLearner, FederationPair
from tests.machines.test_federation import expected_digest, results
from tests.replay.test_recovery import recover_pair


class Poisoner(ArithmeticLearner):
    """Sends the largest floats there are, and claims more examples than anybody has."""

    def train(self, plan: RoundPlan, sets: Sets, kept: NodeState, should_stop: Callable[[], bool]) -> LocalUpdate:
        """Return the poisoned update."""
        update = super().train(plan, sets, kept, should_stop)
        poison = Sets({"model": {name: np.full_like(array, 3.4e38) for name, array in update.sets["model"].items()}})
        return dataclasses.replace(update, sets=poison, num_examples=10**12)


class Boaster(ArithmeticLearner):
    """Trains honestly, and claims more examples than anybody has."""

    def train(self, plan: RoundPlan, sets: Sets, kept: NodeState, should_stop: Callable[[], bool]) -> LocalUpdate:
        """Return the update with its weight."""
        return dataclasses.replace(super().train(plan, sets, kept, should_stop), num_examples=10**12)


def test_the_largest_floats_change_nothing_and_the_node_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pair = FederationPair(tmp_path, num_nodes=4, num_rounds=5, min_nodes=3)
    pair.learners["n3"] = Poisoner("n3")
    pair.start()
    pair.run()
    assert pair.aggregator_service.stopped is not None
    assert not pair.aggregator_service.stopped.failed
    assert pair.global_digest == expected_digest(num_nodes=3, num_rounds=5)
    assert "node=n3 left out" in caplog.text
    assert "node=n3 set aside" in caplog.text
    outcomes = [{outcome.node: outcome.weight for outcome in result.outcomes} for result in results(pair)]
    assert outcomes[0] == {"n0": 58, "n1": 59, "n2": 60, "n3": 0}
    assert "n3" not in outcomes[2]


def test_a_boaster_counts_for_what_it_declared(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=2)
    pair.learners["n2"] = Boaster("n2")
    pair.start()
    pair.run()
    weights = [[outcome.weight for outcome in result.outcomes] for result in results(pair)]
    assert weights == [[58, 59, 200], [58, 59, 200]]
    assert "not the 1000000000000 it claims" in results(pair)[0].outcomes[2].protection


def test_replay_protects_as_the_run_did_with_and_without_the_node(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_nodes=4, num_rounds=2, min_nodes=3)
    pair.learners["n3"] = Poisoner("n3")
    pair.learners["n2"] = Boaster("n2")
    pair.start()
    pair.run()
    replay = Replay("pair", Archive(tmp_path / "out" / "rounds"))
    assert len(list(replay.verify([1, 2]))) == 2
    without_harm = list(replay.what_if([1, 2], WhatIf(without={"n3"}), None))
    assert all(changed.next_global_digest == changed.result.next_global_digest for changed in without_harm)
    without_weight = list(replay.what_if([1, 2], WhatIf(without={"n2"}), None))
    assert all(changed.next_global_digest != changed.result.next_global_digest for changed in without_weight)


class Turncoat(ArithmeticLearner):
    """Turns its update round and makes it ten times as large: less than a large node's may be."""

    def train(self, plan: RoundPlan, sets: Sets, kept: NodeState, should_stop: Callable[[], bool]) -> LocalUpdate:
        """Return the turned update."""
        update = super().train(plan, sets, kept, should_stop)
        start, trained = sets["model"], update.sets["model"]
        return dataclasses.replace(update, sets=Sets({"model": (start - 10.0 * (trained - start)).held()}))


def accuracy_of_bias(params: Params) -> Evaluation:
    """Call a model the better the further its bias has been moved the way that honest nodes move it."""
    accuracy = float(np.clip(np.mean(params["bias"]) / 4.0 + 0.5, 0.0, 1.0))
    scores = {"accuracy": accuracy, "f1_macro": accuracy, "f1_weighted": accuracy, "loss": 1.0 - accuracy}
    return Evaluation.model_validate({"num_examples": 2, "class_accuracy": [0.5, 0.5], "confusion_matrix": [[1, 0], [1, 0]], **scores})


def test_an_update_that_makes_the_model_worse_is_left_out_and_replay_agrees(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pair = FederationPair(tmp_path, num_nodes=4, num_rounds=5, min_nodes=3, score=accuracy_of_bias)
    pair.learners["n3"] = Turncoat("n3")
    pair.start()
    pair.run()
    assert pair.global_digest == expected_digest(num_nodes=3, num_rounds=5)
    assert "node=n3 left out: it moves the model further than the others, or another way" in caplog.text
    assert "node=n3 set aside" in caplog.text
    replay = Replay("pair", Archive(tmp_path / "out" / "rounds"))
    assert len(list(replay.verify([1, 2, 3, 4, 5]))) == 5


class Sleeper(ArithmeticLearner):
    """Trains as the others do for two rounds; then it moves the bias far the other way, within the size and the angle allowed."""

    def train(self, plan: RoundPlan, sets: Sets, kept: NodeState, should_stop: Callable[[], bool]) -> LocalUpdate:
        """Return an update that is honest but for a few of its values."""
        update = super().train(plan, sets, kept, should_stop)
        trained = update.sets["model"]
        if plan.round_number < 3:
            return update
        return dataclasses.replace(update, sets=Sets({"model": {"weight": trained["weight"], "bias": trained["bias"] - np.float32(30)}}))


def accuracy_of_many_images(params: Params) -> Evaluation:
    accuracy = float(np.clip(np.mean(params["bias"]) / 20.0 + 0.85, 0.0, 1.0))
    return accuracy_of_bias(params).model_copy(update={"num_examples": 10_000, "accuracy": accuracy, "loss": 1.0 - accuracy})


def pair_with_sleeper(folder: Path, **protection: float) -> FederationPair:
    pair = FederationPair(folder, num_nodes=4, num_rounds=5, min_nodes=3, score=accuracy_of_many_images, protection=protection)
    pair.learners["n3"] = Sleeper("n3")
    pair.start()
    return pair


def test_without_the_margin_a_node_within_all_bounds_ruins_the_model(tmp_path: Path) -> None:
    pair = pair_with_sleeper(tmp_path, max_setback=0)
    pair.run()
    accuracies = [result.evaluation.accuracy for result in results(pair) if result.evaluation is not None]
    assert accuracies[1] > 0.85
    assert accuracies[4] == 0.0


def test_a_fallen_model_is_made_again_without_the_node_and_replay_and_recover_agree(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = pair_with_sleeper(tmp_path)
    pair.run()
    assert "setback accuracy=" in caplog.text
    assert "node=n3 left out: with it the model's accuracy on the server's images falls to" in caplog.text
    assert "node=n3 set aside" in caplog.text
    led = results(pair)
    assert [{outcome.node: outcome.weight for outcome in result.outcomes}.get("n3", 0) for result in led] == [61, 61, 0, 0, 0]
    assert [result.setback is not None for result in led] == [False, False, True, True, False]
    without = FederationPair(tmp_path / "without", num_nodes=3, num_rounds=5, score=accuracy_of_many_images)
    without.start()
    without.run()
    final, wanted = led[-1].evaluation, results(without)[-1].evaluation
    assert final is not None
    assert wanted is not None
    assert abs(final.accuracy - wanted.accuracy) < 0.02
    replay = Replay("pair", Archive(tmp_path / "out" / "rounds"))
    assert len(list(replay.verify([1, 2, 3, 4, 5]))) == 5
    changed = list(replay.what_if([3, 4], WhatIf(without={"n0"}), None))
    assert [entry.nodes for entry in changed] == [("n1", "n2"), ("n1", "n2")]
    worst, *_ = [entry for entry in blame(replay, [1, 2, 3, 4, 5], accuracy_of_many_images) if entry.num_left_out]
    assert (worst.node, worst.num_left_out) == ("n3", 2)


def test_a_run_recovered_after_a_setback_ends_with_the_same_digest(tmp_path: Path) -> None:
    undisturbed = pair_with_sleeper(tmp_path / "undisturbed")
    undisturbed.run()
    pair = pair_with_sleeper(tmp_path / "recovered")
    pair.run(lambda: "fedmq/v2/pair/rounds/4/plan" in pair.broker.retained)
    best = pair.aggregator_service._coordinator.position.best_accuracy
    pair.kill("aggregator")
    assert recover_pair(pair).position.best_accuracy == best
    pair.start_aggregator(is_resuming=True)
    pair.run()
    assert pair.global_digest == undisturbed.global_digest


def test_a_result_that_leaves_out_half_for_a_setback_is_not_believed(tmp_path: Path) -> None:
    """Fewer than half may be: the others could not outvote them, and a record must not become whatever its writer likes."""
    pair = pair_with_sleeper(tmp_path)
    pair.run(lambda: "fedmq/v2/pair/rounds/3/result" in pair.broker.retained)
    topic = "fedmq/v2/pair/rounds/3/result"
    result = parse(RoundResult, pair.broker.retained[topic])
    outcomes = [outcome.model_copy(update={"weight": 0} if outcome.node != "n0" else {}) for outcome in result.outcomes]
    pair.broker._retained[topic] = result.model_copy(update={"outcomes": outcomes}).to_payload()

    def read(filters: Sequence[str], **_bounds: object) -> Iterator[tuple[str, bytes]]:
        yield from [entry for entry in pair.broker.retained.items() if any(matches(pattern, entry[0]) for pattern in filters)]

    with pytest.raises(ArchiveError, match=r"round 3: result.json: it leaves out 3 of 4 updates for a setback: fewer than half may be"):
        list(Replay("pair", BrokerRounds("pair", read)).verify([3]))


def test_of_two_nodes_the_harmful_one_costs_rounds_but_never_the_model(tmp_path: Path) -> None:
    """Below `min_nodes` nothing is aggregated: the run waits, and its model is as it was."""
    pair = FederationPair(tmp_path, num_nodes=2, num_rounds=5, max_failed_rounds=2)
    pair.learners["n1"] = Poisoner("n1")
    pair.start()
    before = pair.global_digest
    pair.run()
    assert pair.aggregator_service.stopped is not None
    assert "2 rounds in a row" in pair.aggregator_service.stopped.reason
    assert pair.global_digest == before
