"""Who is really there, and who answers: ghosts, silent nodes and nodes that fail every round."""

from __future__ import annotations

from aggregator.attendance import ROLL_SECONDS
from aggregator.coordinator import Coordinator, Phase
from aggregator.events import (
    Aggregate,
    AggregationFinished,
    AggregationRefused,
    Effect,
    EvaluationFinished,
    Note,
    PublishResult,
    PublishRound,
    PublishState,
    SessionOpened,
    TimePassed,
    UpdateRefused,
)
from aggregator.protection import Contribution
from federation.errors import RejectReason
from federation.settings import RunSettings
from tests.machines.builders import NEXT, completed, coordinator, settings, started, status


def cohorts(effects: list[Effect]) -> list[list[str]]:
    return [effect.plan.cohort for effect in effects if isinstance(effect, PublishRound)]


def finish(machine: Coordinator, round_number: int, nodes: tuple[str, ...], now: float) -> list[Effect]:
    """Have these nodes answer, let the deadline pass for the others, and see the round to its end; return its last effects."""
    effects: list[Effect] = []
    for node in nodes:
        effects = machine.handle(completed(node, round_number=round_number), now)
    if machine.phase is Phase.COLLECTING and machine.position.round_number == round_number:
        assert machine.wake_at is not None
        now = machine.wake_at
        effects = machine.handle(TimePassed(), now)
    if machine.phase is Phase.AGGREGATING:
        machine.handle(AggregationFinished(round_number=round_number, next_global_digest=NEXT, diagnostics={}), now)
        effects = machine.handle(EvaluationFinished(round_number=round_number, evaluation=None), now)
    return effects


def refused(node: str, round_number: int) -> UpdateRefused:
    return UpdateRefused(round_number=round_number, node=node, sha256=None, reason=RejectReason.CORRUPT, detail="bytes")


def resumed(run_settings: RunSettings, *statuses: tuple[str, bool]) -> Coordinator:
    """Return a coordinator that has seen these nodes' statuses, each retained or live, and has called the roll at time 1."""
    machine = coordinator(run_settings)
    machine.handle(SessionOpened(session_present=False), 0.0)
    for node, retained in statuses:
        event = status(node)
        machine.handle(type(event)(status=event.status, retained=retained), 0.1)
    machine.handle(TimePassed(), 1.0)
    return machine


def test_a_ghost_is_not_drawn() -> None:
    """Device and broker died together: its retained status says online for ever."""
    machine = resumed(settings(), ("n0", True), ("n1", True), ("ghost", True))
    assert machine.phase is Phase.WAITING
    assert not cohorts(machine.handle(status("n0"), 2.0))
    assert not cohorts(machine.handle(status("n1"), 2.5))
    assert machine.wake_at == 1.0 + ROLL_SECONDS
    assert cohorts(machine.handle(TimePassed(), machine.wake_at)) == [["n0", "n1"]]


def test_all_who_answer_the_roll_are_drawn_at_once_in_whatever_order() -> None:
    machine = resumed(settings(), ("n0", True), ("n1", True), ("n2", True))
    for node in ("n2", "n0"):
        assert not cohorts(machine.handle(status(node), 2.0))
    assert cohorts(machine.handle(status("n1"), 2.1)) == [["n0", "n1", "n2"]]


def test_too_few_answers_are_waited_for_and_said() -> None:
    machine = resumed(settings(), ("n0", False), ("ghost", True))
    effects = machine.handle(TimePassed(), 1.0 + ROLL_SECONDS)
    (said,) = [effect.state for effect in effects if isinstance(effect, PublishState)]
    assert "1 of at least 2" in said.reason
    assert "ghost sits out: its status is old" in said.reason
    assert cohorts(machine.handle(status("ghost"), 20.0)) == [["ghost", "n0"]]


def test_roll_is_called_again_after_every_reconnection() -> None:
    machine, opened = started(settings())
    before = [effect.state.roll_call for effect in opened if isinstance(effect, PublishState)][-1]
    (said,) = machine.handle(SessionOpened(session_present=True), 2.0)
    assert isinstance(said, PublishState)
    assert said.state.roll_call > before
    # n1 died with the broker: its update came before, it is not drawn again.
    machine.handle(status("n0"), 2.1)
    effects = [*machine.handle(completed("n1"), 2.2)]
    assert not cohorts(effects)


def test_a_rejected_node_does_not_stop_the_others() -> None:
    machine, _ = started(settings(), nodes=("n0", "n1", "n2"))
    machine.handle(refused("n2", 1), 2.0)
    machine.handle(completed("n0"), 3.0)
    (aggregate,) = [effect for effect in machine.handle(completed("n1"), 4.0) if isinstance(effect, Aggregate)]
    assert aggregate.nodes == ("n0", "n1")


def test_below_min_nodes_a_rejection_still_fails_the_round() -> None:
    machine, _ = started(settings())
    machine.handle(refused("n1", 1), 2.0)
    effects = machine.handle(completed("n0"), 3.0)
    (published,) = [effect for effect in effects if isinstance(effect, PublishResult)]
    assert not published.result.aggregated


def test_a_node_rejected_in_every_round_is_set_aside_and_never_ends_the_run() -> None:
    machine, _ = started(settings(num_rounds=60), nodes=("n0", "n1", "n2"))
    drawn = []
    for round_number in range(1, 60):
        drawn.append("n2" in (machine._round.members if machine._round else ()))
        if drawn[-1]:
            machine.handle(refused("n2", round_number), 2.0)
        finish(machine, round_number, ("n0", "n1"), 3.0)
        # It calls itself fit all the time.
        machine.handle(status("n2", instance="i1"), 3.5)
        assert machine.phase is Phase.COLLECTING
    assert drawn[:2] == [True, True]
    assert sum(drawn) <= 8


def test_a_silent_node_costs_one_deadline_and_is_back_when_it_speaks() -> None:
    machine, _ = started(settings(num_rounds=10), nodes=("n0", "n1", "n2"))
    effects = finish(machine, 1, ("n0", "n1"), 2.0)
    assert any("n2 set aside" in effect.text for effect in effects if isinstance(effect, Note))
    assert cohorts(effects) == [["n0", "n1"]]
    assert any("n2 set aside" in effect.state.reason for effect in effects if isinstance(effect, PublishState))
    for round_number in (2, 3, 4, 5):
        assert cohorts(finish(machine, round_number, ("n0", "n1"), 150.0)) == [["n0", "n1"]]
    machine.handle(status("n2", instance="i2"), 155.0)
    assert cohorts(finish(machine, 6, ("n0", "n1"), 160.0)) == [["n0", "n1", "n2"]]


def test_one_useful_round_does_not_wash_a_node_clean() -> None:
    """Silent, of use, silent again: it sits out longer each time."""
    machine, _ = started(settings(num_rounds=20), nodes=("n0", "n1", "n2"))
    now = 2.0
    silent: list[int] = []
    for round_number in range(1, 17):
        cohort = machine.position.cohort
        answers = tuple(node for node in cohort if node != "n2" or (silent and silent[-1] == round_number - 1))
        if "n2" in cohort and "n2" not in answers:
            silent.append(round_number)
        now += 150.0
        machine.handle(status("n2", instance=f"i{round_number}"), now)
        finish(machine, round_number, answers, now)
        machine.handle(status("n2", instance=f"j{round_number}"), now)
    assert len(silent) <= 4


def test_a_node_that_is_needed_comes_back_as_soon_as_it_speaks() -> None:
    machine, _ = started(settings(num_rounds=10))
    finish(machine, 1, ("n0",), 2.0)
    finish(machine, 2, ("n0",), 200.0)
    assert machine.phase is Phase.WAITING
    assert cohorts(machine.handle(status("n1", instance="i2"), 400.0)) == [["n0", "n1"]]


def test_rounds_of_which_nothing_came_say_nothing_of_any_node() -> None:
    """The deadline is too short for all, or the broker was away: the run ends with its own sentence."""
    machine, _ = started(settings(num_rounds=10, max_failed_rounds=4))
    for round_number in (1, 2, 3, 4):
        finish(machine, round_number, (), 2.0)
    assert machine.phase is Phase.LEAVING


def test_what_the_protection_leaves_out_counts_as_missed_and_is_in_the_result() -> None:
    machine, _ = started(settings(num_rounds=10), nodes=("n0", "n1", "n2"))
    for round_number in (1, 2):
        for node in ("n0", "n1", "n2"):
            machine.handle(completed(node, round_number=round_number), 2.0)
        contributions = (
            Contribution(node="n0", weight=10, distance=1.0),
            Contribution(node="n1", weight=10, distance=1.0),
            Contribution(node="n2", weight=0, distance=1e30, reason="left out: far"),
        )
        finished = AggregationFinished(round_number=round_number, next_global_digest=NEXT, diagnostics={}, contributions=contributions)
        machine.handle(finished, 3.0)
        effects = machine.handle(EvaluationFinished(round_number=round_number, evaluation=None), 4.0)
    (published,) = [effect for effect in effects if isinstance(effect, PublishResult)]
    figures = {outcome.node: (outcome.weight, outcome.distance, outcome.declared_examples) for outcome in published.result.outcomes}
    assert figures == {"n0": (10, 1.0, 10), "n1": (10, 1.0, 10), "n2": (0, 1e30, 10)}
    assert cohorts(effects) == [["n0", "n1"]]


def test_a_refused_aggregation_leaves_the_model_and_goes_on() -> None:
    machine, _ = started(settings(num_rounds=10))
    before = machine.position.global_digest
    for node in ("n0", "n1"):
        machine.handle(completed(node), 2.0)
    effects = machine.handle(AggregationRefused(round_number=1, detail="no update is left"), 3.0)
    (published,) = [effect for effect in effects if isinstance(effect, PublishResult)]
    assert not published.result.aggregated
    assert machine.position.global_digest == before
    assert machine.phase is Phase.COLLECTING
