"""`fedmq blame`: the node whose removal helps most is named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import fedmq.blame
from aggregator.archive import Archive
from aggregator.blame import blame
from aggregator.replay import Replay
from edge_node.work import LocalUpdate
from federation.learning.algorithms import NodeState
from federation.learning.sets import Sets
from federation.messages import Evaluation, RoundPlan
from federation.params import Params
from fedmq.cli import app
from tests.machines.federation_pair import ArithmeticLearner, FederationPair, initial_params
from tests.machines.test_one_bad_node import Poisoner


class Saboteur(ArithmeticLearner):
    """Goes the other way, ten times as far: within every bound."""

    def train(self, plan: RoundPlan, sets: Sets, kept: NodeState, should_stop: Callable[[], bool]) -> LocalUpdate:
        """Return the update."""
        update = super().train(plan, sets, kept, should_stop)
        start, trained = sets["model"], update.sets["model"]
        return dataclasses.replace(update, sets=Sets({"model": (start - 10.0 * (trained - start)).held()}))


def score(params: Params) -> Evaluation:
    """Return an accuracy that grows with what honest nodes add."""
    shift = float(np.mean(params["bias"] - initial_params()["bias"]))
    accuracy = 1 / (1 + np.exp(-shift))
    return Evaluation(
        num_examples=2, accuracy=accuracy, f1_macro=0.5, f1_weighted=0.5, loss=1 - accuracy, class_accuracy=[], confusion_matrix=[]
    )


@pytest.fixture(scope="module")
def sabotaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run that n1 has sabotaged."""
    return record(tmp_path_factory.mktemp("sabotaged"), "n1", Saboteur("n1"))


def record(folder: Path, node: str, learner: ArithmeticLearner) -> Path:
    # Without probation, which would keep a saboteur out as it goes.
    pair = FederationPair(folder, num_nodes=4, num_rounds=3, score=score, protection={"max_harm": 1.0}, min_nodes=3)
    pair.learners[node] = learner
    pair.start()
    pair.run()
    return folder / "out"


def test_the_saboteur_comes_first(sabotaged: Path) -> None:
    found = blame(Replay("pair", Archive(sabotaged / "rounds")), [1, 2, 3], score)
    assert found[0].node == "n1"
    assert {entry.node for entry in found} == {"n0", "n1", "n2", "n3"}
    worst, *others = found
    assert worst.num_rounds == 3
    assert worst.accuracy_gain > 0.01
    assert all(entry.accuracy_gain < 0 for entry in others)
    assert (worst.num_left_out, worst.num_lowered, worst.num_rejected) == (0, 0, 0)


def test_one_that_was_kept_out_is_named_though_it_did_no_harm(tmp_path: Path) -> None:
    out = record(tmp_path, "n3", Poisoner("n3"))
    found = blame(Replay("pair", Archive(out / "rounds")), [1, 2, 3], score)
    named = fedmq.blame.culprit(found)
    assert named is not None
    assert (named.node, named.num_rounds, named.num_left_out) == ("n3", 0, 2)
    assert "n3 did no harm" in fedmq.blame.sentence_of(named)


def test_honest_nodes_are_not_named(tmp_path: Path) -> None:
    out = record(tmp_path, "n0", ArithmeticLearner("n0"))
    found = blame(Replay("pair", Archive(out / "rounds")), [1, 2, 3], score)
    assert fedmq.blame.culprit(found) is None
    assert "no node's removal" in fedmq.blame.sentence_of(None)


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_command_names_it(sabotaged: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fedmq.blame, "build_evaluator_of", lambda _settings, _environment: score)
    result = CliRunner().invoke(app, ["blame", "pair", "--from", "archive", "--out", str(sabotaged), *flags])
    assert result.exit_code == 0, result.output
    if flags:
        assert json.loads(result.stdout)["culprit"] == "n1"
    else:
        assert "without n1 a round ends" in result.stdout
