"""A setback: when a model counts as fallen, who is found to blame, and what the coordinator makes of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.events import Aggregate, AggregationFinished, AggregationRefused, Evaluate, EvaluationFinished, PublishResult
from aggregator.protection import Contribution, Protected
from aggregator.setback import MAX_EVALUATIONS, best_accuracy, leave_out_culprits, max_culprits, setback_of
from federation.learning.algorithms import Update
from federation.learning.sets import Sets
from federation.messages import Evaluation, Setback
from federation.settings import ProtectionSettings
from fedmq.watch_state import setback_sentence
from tests.machines.builders import NEXT, completed, settings, started

FALLEN = Setback(accuracy=0.3, best_accuracy=0.9, least_accuracy=0.7)


def evaluation(accuracy: float, num_examples: int = 10_000) -> Evaluation:
    scores = {"accuracy": accuracy, "f1_macro": accuracy, "f1_weighted": accuracy, "loss": 1.0 - accuracy}
    return Evaluation.model_validate({"num_examples": num_examples, "class_accuracy": [], "confusion_matrix": [], **scores})


def setback(accuracy: float, best: float | None = 0.9, *, num_examples: int = 10_000, num_classes: int = 10, **changes: float) -> bool:
    found = setback_of(
        evaluation(accuracy, num_examples),
        best_accuracy=best,
        num_classes=num_classes,
        settings=ProtectionSettings.model_validate(changes),
    )
    return found is not None


def test_a_model_has_fallen_below_the_margin_alone() -> None:
    assert setback(0.69)
    assert not setback(0.71)
    assert setback(0.71, max_setback=0.1)


def test_nothing_has_fallen_before_a_best_without_images_or_turned_off() -> None:
    assert not setback(0.0, None)
    assert not setback(0.0, max_setback=0)
    assert setback_of(None, best_accuracy=0.9, num_classes=10, settings=ProtectionSettings()) is None


@pytest.mark.parametrize(("num_classes", "least"), [(10, 0.3), (8, 0.375), (3, 0.8), (2, 0.8)])
def test_a_run_that_has_learnt_little_can_fall_freely(num_classes: int, least: float) -> None:
    assert not setback(0.0, least - 0.01, num_classes=num_classes)
    assert setback(0.0, least + 0.01, num_classes=num_classes)


def test_few_images_allow_more() -> None:
    assert not setback(0.5, num_examples=4)
    assert setback(0.5, num_examples=100)


def protected(**harm: float) -> Protected:
    """Return updates whose harm is their value; the nodes are tried in the order of its size."""
    updates = tuple(
        Update(node=node, num_examples=1, sets=Sets({"model": {"w": np.full(1, value, dtype=np.float32)}})) for node, value in harm.items()
    )
    return Protected(updates=updates, contributions=tuple(Contribution(node=n, weight=1, distance=abs(value)) for n, value in harm.items()))


class Images:
    """Takes the mean harm of the updates off a perfect score, and counts how often it is asked."""

    def __init__(self) -> None:
        self.num_asked = 0

    def evaluate(self, updates: Sequence[Update]) -> Evaluation:
        """Return the score of the model made of these updates."""
        self.num_asked += 1
        harm = float(np.mean([update.sets["model"]["w"][0] for update in updates]))
        return evaluation(float(np.clip(0.9 - harm, 0.0, 1.0)))


def left(updates: Protected, images: Images | None = None) -> list[str]:
    found = leave_out_culprits(updates, FALLEN, (images or Images()).evaluate)
    assert [update.node for update in found.updates] == [entry.node for entry in found.contributions if entry.weight]
    return [update.node for update in found.updates]


def test_the_node_without_which_the_model_is_good_is_left_out_and_named() -> None:
    updates = protected(a=0.01, bad=2.0, c=0.01)
    assert left(updates) == ["a", "c"]
    (reason,) = [entry.reason for entry in leave_out_culprits(updates, FALLEN, Images().evaluate).contributions if entry.weight == 0]
    assert reason == (
        "left out: with it the model's accuracy on the server's images falls to 0.3000, the best was 0.9000; without it, it is 0.8900"
    )


def test_several_are_left_out_while_they_are_fewer_than_half() -> None:
    assert left(protected(a=0.01, b=0.01, c=0.01, bad=2.0, worse=3.0)) == ["a", "b", "c"]
    assert left(protected(a=0.01, b=0.01, bad=2.0, worse=3.0)) == ["a", "b", "bad", "worse"]


def test_where_nobody_explains_it_all_stay() -> None:
    """As where the data of all are to blame, or the learning rate: the round gives no model then."""
    updates = protected(a=0.6, b=0.6, c=0.6)
    assert leave_out_culprits(updates, FALLEN, Images().evaluate) is updates
    two = protected(a=0.01, bad=3.0)
    assert leave_out_culprits(two, FALLEN, Images().evaluate) is two
    assert leave_out_culprits(updates, FALLEN, lambda _updates: None) is updates


def test_evaluations_are_bounded() -> None:
    images = Images()
    left(protected(**{f"n{index:03d}": 0.6 + index / 1000 for index in range(100)}), images)
    assert images.num_asked == MAX_EVALUATIONS


@given(st.lists(st.floats(0, 10), max_size=12))
def test_never_half_are_left_out(harms: list[float]) -> None:
    updates = protected(**{f"n{index:02d}": value for index, value in enumerate(harms)})
    assert len(harms) - len(left(updates)) <= max_culprits(len(harms))


def contributions(culprit: str = "") -> tuple[Contribution, ...]:
    return tuple(
        Contribution(node=node, weight=0 if node == culprit else 10, distance=1.0, reason="left out" if node == culprit else "")
        for node in ("n0", "n1", "n2")
    )


def aggregated(number: int, culprit: str = "") -> AggregationFinished:
    return AggregationFinished(round_number=number, next_global_digest=NEXT, diagnostics={}, contributions=contributions(culprit))


def test_coordinator_has_a_fallen_round_aggregated_again_once_and_publishes_why() -> None:
    machine, _ = started(settings(num_rounds=3), nodes=("n0", "n1", "n2"))
    for node in ("n0", "n1", "n2"):
        machine.handle(completed(node), 2.0)
    machine.handle(aggregated(1), 3.0)
    machine.handle(EvaluationFinished(round_number=1, evaluation=evaluation(0.9)), 4.0)
    assert machine.position.best_accuracy == pytest.approx(0.9)
    for node in ("n0", "n1", "n2"):
        machine.handle(completed(node, round_number=2), 5.0)
    machine.handle(aggregated(2), 6.0)
    effects = machine.handle(EvaluationFinished(round_number=2, evaluation=evaluation(0.3)), 7.0)
    (again,) = [effect for effect in effects if isinstance(effect, Aggregate)]
    assert again.setback == setback_of(evaluation(0.3), best_accuracy=0.9, num_classes=9, settings=ProtectionSettings())
    assert again.nodes == ("n0", "n1", "n2")
    effects = machine.handle(aggregated(2, "n2"), 8.0)
    assert [type(effect) for effect in effects if not hasattr(effect, "text")] == [Evaluate]
    effects = machine.handle(EvaluationFinished(round_number=2, evaluation=evaluation(0.8)), 9.0)
    (published,) = [effect for effect in effects if isinstance(effect, PublishResult)]
    assert published.result.setback == again.setback
    assert [(outcome.node, outcome.weight) for outcome in published.result.outcomes] == [("n0", 10), ("n1", 10), ("n2", 0)]
    assert machine.position.best_accuracy == pytest.approx(0.9)
    assert best_accuracy([published.result]) == pytest.approx(0.8)
    assert setback_sentence(published.result) == "round 2: setback to 0.3000, the best was 0.9000; left out: n2"


def test_coordinator_keeps_the_model_where_nobody_is_found() -> None:
    machine, _ = started(settings(num_rounds=3), nodes=("n0", "n1", "n2"))
    for number, accuracy in ((1, 0.9), (2, 0.3)):
        for node in ("n0", "n1", "n2"):
            machine.handle(completed(node, round_number=number), 5.0)
        before = machine.position.global_digest
        machine.handle(aggregated(number), 6.0)
        machine.handle(EvaluationFinished(round_number=number, evaluation=evaluation(accuracy)), 7.0)
    effects = machine.handle(AggregationRefused(round_number=2, detail="nobody", contributions=contributions()), 8.0)
    (published,) = [effect for effect in effects if isinstance(effect, PublishResult)]
    assert not published.result.aggregated
    assert setback_sentence(published.result) == "round 2: setback to 0.3000, the best was 0.9000; nobody found: the model stays"
    assert machine.position.global_digest == before
