"""The coordinator alone, on a hand-moved clock."""

from __future__ import annotations

import hashlib
from typing import TypeVar

import pytest

from aggregator.coordinator import CHECK_SECONDS, LEAVE_SECONDS, Coordinator, Phase
from aggregator.events import (
    Aggregate,
    AggregationFinished,
    CheckBegun,
    CheckRounds,
    ClearControl,
    Effect,
    Evaluate,
    EvaluationFinished,
    FollowRound,
    FollowRun,
    LeaveRound,
    Note,
    Position,
    PublishFinal,
    PublishResult,
    PublishRound,
    PublishState,
    RequestMissing,
    SaveCheckpoint,
    SendAck,
    SessionOpened,
    StateSeen,
    Stop,
    TimePassed,
    UpdateOffered,
    UpdateProgressed,
    UpdateRefused,
    WorkFailed,
)
from aggregator.open_round import MAX_REQUESTS, SETTLE_SECONDS
from federation.errors import RejectReason
from federation.settings import RunSettings
from tests.machines.builders import CLASS_NAMES, GLOBAL, NEXT, completed, coordinator, seen, settings, started, state, status, wish

E = TypeVar("E", bound=Effect)


def of(kind: type[E], effects: list[Effect]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]


def nodes_leave(machine: Coordinator) -> list[Stop]:
    """Let both nodes go offline; return the effects that stop the process: one, at the second."""
    assert machine.wake_at is not None
    now = machine.wake_at - 1.0
    assert of(Stop, machine.handle(status("n0", online=False), now)) == []
    return of(Stop, machine.handle(status("n1", online=False), now))


def test_round_opens_when_enough_nodes_are_fit() -> None:
    machine = coordinator(settings())
    assert machine.handle(SessionOpened(session_present=False), 0.0) == [FollowRun()]
    assert machine.handle(status("n0"), 0.1)
    (waiting,) = of(PublishState, machine.handle(TimePassed(), 1.0))
    assert (waiting.state.phase, waiting.state.round_number) == ("waiting", 0)
    assert "1 of at least 2" in waiting.state.reason
    effects = machine.handle(status("n1"), 2.0)
    kinds = [type(effect) for effect in effects if not isinstance(effect, Note)]
    assert kinds == [SaveCheckpoint, FollowRound, PublishRound, PublishState]
    (opened,) = of(PublishRound, effects)
    assert opened.plan.cohort == ["n0", "n1"]
    assert opened.plan.round_number == 1
    assert opened.plan.global_digest == GLOBAL


def test_round_closes_as_soon_as_all_have_answered_and_the_next_opens() -> None:
    machine, _ = started(settings())
    (ack,) = of(SendAck, machine.handle(completed("n1"), 2.0))
    assert (ack.node, ack.outcome) == ("n1", "accepted")
    effects = machine.handle(completed("n0"), 3.0)
    assert of(LeaveRound, effects) == [LeaveRound(round_number=1)]
    assert of(Aggregate, effects) == [
        Aggregate(round_number=1, nodes=("n0", "n1"), declared={"n0": 10, "n1": 10}, min_updates=2, num_nodes=2)
    ]
    assert machine.handle(AggregationFinished(round_number=1, next_global_digest=NEXT, diagnostics={}), 4.0) == [
        Evaluate(round_number=1, global_digest=NEXT)
    ]
    effects = machine.handle(EvaluationFinished(round_number=1, evaluation=None), 5.0)
    (published,) = of(PublishResult, effects)
    result = published.result
    assert (result.accepted, result.rejected, result.discarded, result.stragglers) == (2, 0, 0, 0)
    assert (result.global_digest, result.next_global_digest) == (GLOBAL, NEXT)
    assert result.seconds == pytest.approx(4.0)
    assert result.phase_seconds["collect"] == pytest.approx(2.0)
    (opened,) = of(PublishRound, effects)
    assert (opened.plan.round_number, opened.plan.global_digest) == (2, NEXT)


def test_last_round_publishes_the_final_model_and_stops() -> None:
    machine, _ = started(settings(num_rounds=1))
    for node in ("n0", "n1"):
        machine.handle(completed(node), 2.0)
    machine.handle(AggregationFinished(round_number=1, next_global_digest=NEXT, diagnostics={}), 3.0)
    effects = machine.handle(EvaluationFinished(round_number=1, evaluation=None), 4.0)
    assert of(PublishFinal, effects) == [PublishFinal(round_number=2, global_digest=NEXT)]
    (last,) = of(PublishState, effects)
    assert (last.state.phase, last.state.final_digest) == ("finished", NEXT)
    (stop,) = nodes_leave(machine)
    assert not stop.failed
    assert machine.handle(status("n9"), 5.0) == []


def ended(run_settings: RunSettings) -> Coordinator:
    """Return a coordinator whose only round is over, at time 4."""
    machine, _ = started(run_settings)
    for node in ("n0", "n1"):
        machine.handle(completed(node), 2.0)
    machine.handle(AggregationFinished(round_number=1, next_global_digest=NEXT, diagnostics={}), 3.0)
    machine.handle(EvaluationFinished(round_number=1, evaluation=None), 4.0)
    return machine


def test_ended_run_gives_a_broker_that_forgot_the_final_model_again() -> None:
    machine = ended(settings(num_rounds=1))
    effects = machine.handle(SessionOpened(session_present=False), 5.0)
    assert of(PublishFinal, effects) == [PublishFinal(round_number=2, global_digest=NEXT)]
    (said,) = of(PublishState, effects)
    assert (said.state.phase, said.state.final_digest) == ("finished", NEXT)
    assert of(CheckRounds, effects)


def test_ended_run_does_not_wait_for_ever_for_a_node_that_stays() -> None:
    machine = ended(settings(num_rounds=1))
    assert machine.wake_at == 4.0 + LEAVE_SECONDS
    assert of(Stop, machine.handle(TimePassed(), 4.0 + LEAVE_SECONDS))


def test_results_form_a_hash_chain() -> None:
    machine, _ = started(settings())
    previous = None
    for round_number in (1, 2):
        for node in ("n0", "n1"):
            machine.handle(completed(node, round_number=round_number), 2.0)
        machine.handle(AggregationFinished(round_number=round_number, next_global_digest=NEXT, diagnostics={}), 3.0)
        (published,) = of(PublishResult, machine.handle(EvaluationFinished(round_number=round_number, evaluation=None), 4.0))
        assert published.result.previous_result_digest == previous
        previous = hashlib.sha256(published.result.to_payload()).hexdigest()


def test_straggler_is_discarded_at_quorum_plus_grace() -> None:
    machine, _ = started(settings(quorum=0.5, grace_seconds=10.0))
    machine.handle(completed("n0"), 2.0)
    assert machine.wake_at == pytest.approx(12.0)
    assert machine.handle(TimePassed(), 11.9) == []
    effects = machine.handle(TimePassed(), 12.0)
    (ack,) = of(SendAck, effects)
    assert (ack.node, ack.outcome, ack.reason) == ("n1", "discarded", "late")
    assert of(Aggregate, effects) == [Aggregate(round_number=1, nodes=("n0",), declared={"n0": 10, "n1": 10}, min_updates=1, num_nodes=2)]
    # When it comes after all, it hears the same again, and nothing else happens.
    (late,) = of(SendAck, machine.handle(completed("n1"), 13.0))
    assert (late.outcome, late.reason) == ("discarded", "late")


def test_below_quorum_at_the_deadline_the_model_stays_and_the_next_round_opens() -> None:
    machine, _ = started(settings())
    machine.handle(completed("n0"), 2.0)
    effects = machine.handle(TimePassed(), 101.0)
    (published,) = of(PublishResult, effects)
    assert not published.result.aggregated
    assert published.result.next_global_digest == GLOBAL
    assert (published.result.accepted, published.result.discarded, published.result.stragglers) == (1, 1, 1)
    (opened,) = of(PublishRound, effects)
    assert (opened.plan.round_number, opened.plan.global_digest) == (2, GLOBAL)


def test_run_stops_after_too_many_failed_rounds() -> None:
    machine, _ = started(settings(num_rounds=10, max_failed_rounds=2))
    machine.handle(TimePassed(), 101.0)
    machine.handle(TimePassed(), 201.0)
    (stop,) = nodes_leave(machine)
    assert stop.failed
    assert "below quorum" in stop.reason


def test_duplicates_are_answered_again_and_counted_once() -> None:
    machine, _ = started(settings())
    machine.handle(completed("n0"), 2.0)
    (again,) = of(SendAck, machine.handle(completed("n0"), 2.1))
    assert again.outcome == "accepted"
    (other,) = of(SendAck, machine.handle(completed("n0", sha256="f" * 64), 2.2))
    assert (other.outcome, other.reason) == ("discarded", "duplicate")
    machine.handle(completed("n1"), 3.0)
    machine.handle(AggregationFinished(round_number=1, next_global_digest=NEXT, diagnostics={}), 4.0)
    (published,) = of(PublishResult, machine.handle(EvaluationFinished(round_number=1, evaluation=None), 5.0))
    assert (published.result.accepted, published.result.discarded) == (2, 1)


def test_refused_update_is_rejected_with_its_reason_and_ends_that_node_s_round() -> None:
    machine, _ = started(settings(quorum=0.5))
    refused = UpdateRefused(round_number=1, node="n0", sha256="c" * 64, reason=RejectReason.NON_FINITE, detail="NaN in conv1")
    (ack,) = of(SendAck, machine.handle(refused, 2.0))
    assert ack.outcome == "rejected"
    assert ack.reason.startswith("non_finite")
    effects = machine.handle(completed("n1"), 3.0)
    assert of(Aggregate, effects) == [Aggregate(round_number=1, nodes=("n1",), declared={"n0": 10, "n1": 10}, min_updates=1, num_nodes=2)]


def test_offered_update_is_asked_for_its_missing_chunks_once_it_falls_silent() -> None:
    machine, _ = started(settings())
    machine.handle(UpdateOffered(round_number=1, node="n0", sha256="c" * 64), 2.0)
    assert machine.wake_at == pytest.approx(2.0 + SETTLE_SECONDS)
    machine.handle(UpdateProgressed(round_number=1, node="n0", num_bytes=100), 2.9)
    assert machine.handle(TimePassed(), 3.0) == []
    assert machine.handle(TimePassed(), 2.9 + SETTLE_SECONDS) == [RequestMissing(round_number=1, node="n0")]


def test_update_never_completed_is_rejected_in_the_end() -> None:
    machine, _ = started(settings(deadline_seconds=100_000.0))
    machine.handle(UpdateOffered(round_number=1, node="n0", sha256="c" * 64), 2.0)
    num_requests = 0
    for _ in range(MAX_REQUESTS + 1):
        assert machine.wake_at is not None
        effects = machine.handle(TimePassed(), machine.wake_at)
        num_requests += len(of(RequestMissing, effects))
    assert num_requests == MAX_REQUESTS
    (ack,) = of(SendAck, effects)
    assert (ack.outcome, ack.reason.split(":")[0]) == ("rejected", "corrupt")


def test_outsiders_update_is_discarded() -> None:
    machine, _ = started(settings())
    assert not machine.expects("n9", 1)
    assert not machine.expects("n0", 2)
    assert machine.expects("n0", 1)
    (ack,) = of(SendAck, machine.handle(completed("n9"), 2.0))
    assert (ack.outcome, ack.reason) == ("discarded", "not in this round's cohort")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"problem": "disk full"}, "disk full"),
        ({"num_examples": 0}, "no examples"),
        ({"image_shape": [1, 28, 28]}, "images"),
        ({"num_classes": 2}, "classes"),
        ({"class_names": [*CLASS_NAMES[:8], "z"]}, "its class 8 is"),
        ({"class_names": [*CLASS_NAMES[:8]]}, "its class 8 is 'missing', this run's 'i'"),
        ({"class_names": [*CLASS_NAMES, "j"]}, "its class 9 is 'j', this run's 'missing'"),
        ({"online": False}, "offline"),
    ],
)
def test_unfit_node_is_left_out_and_named(changes: dict[str, object], word: str) -> None:
    machine = coordinator(settings(min_nodes=1))
    machine.handle(SessionOpened(session_present=False), 0.0)
    machine.handle(TimePassed(), 1.0)
    effects = machine.handle(status("n0", **changes), 2.0)
    assert not of(PublishRound, effects)
    assert word in str(effects)
    assert machine.fit_nodes() == []


@pytest.mark.parametrize("names", [[], list(CLASS_NAMES)])
def test_a_node_whose_data_name_no_classes_or_the_same_is_fit(names: list[str]) -> None:
    machine = coordinator(settings(min_nodes=1))
    machine.handle(SessionOpened(session_present=False), 0.0)
    machine.handle(TimePassed(), 1.0)
    machine.handle(status("n0", class_names=names), 2.0)
    assert machine.fit_nodes() == ["n0"]


def test_the_state_says_who_is_waited_for_and_why() -> None:
    """`fedmq status` and `watch` show it: the aggregator's log is not where a clinic looks."""
    machine = coordinator(settings(min_nodes=2))
    machine.handle(SessionOpened(session_present=False), 0.0)
    machine.handle(TimePassed(), 1.0)
    (first,) = of(PublishState, machine.handle(status("n0"), 2.0))
    assert first.state.reason == "waiting for nodes: 1 of at least 2 are fit"
    (second,) = of(PublishState, machine.handle(status("n1", problem="disk full"), 2.0))
    assert second.state.reason == "waiting for nodes: 1 of at least 2 are fit; n1 sits out: disk full"
    assert not of(PublishState, machine.handle(status("n1", problem="disk full"), 2.0))


def test_late_joiner_takes_part_from_the_next_round() -> None:
    machine, _ = started(settings())
    assert not of(PublishRound, machine.handle(status("n2"), 1.5))
    assert not machine.expects("n2", 1)
    for node in ("n0", "n1"):
        machine.handle(completed(node), 2.0)
    machine.handle(AggregationFinished(round_number=1, next_global_digest=NEXT, diagnostics={}), 3.0)
    (opened,) = of(PublishRound, machine.handle(EvaluationFinished(round_number=1, evaluation=None), 4.0))
    assert opened.plan.cohort == ["n0", "n1", "n2"]


def test_old_will_does_not_take_a_restarted_node_offline() -> None:
    machine = coordinator(settings())
    machine.handle(SessionOpened(session_present=False), 0.0)
    machine.handle(status("n0", instance="new"), 0.1)
    machine.handle(status("n0", instance="old", online=False), 0.2)
    assert machine.fit_nodes() == ["n0"]


@pytest.mark.parametrize(("away_seconds", "is_warned"), [(None, True), (0.1, True), (5.0, False)])
def test_second_process_of_a_node_is_named_in_the_log(away_seconds: float | None, *, is_warned: bool) -> None:
    """Whether or not the broker lets the first one's will speak as it throws it out."""
    machine = coordinator(settings())
    machine.handle(SessionOpened(session_present=False), 0.0)
    machine.handle(status("n0", instance="one"), 1.0)
    if away_seconds is not None:
        machine.handle(status("n0", instance="one", online=False), 2.0)
    effects = machine.handle(status("n0", instance="two"), 2.0 + (away_seconds or 0.0))
    assert any("took over from one" in note.text for note in of(Note, effects)) == is_warned
    # What both may write of a round, before and after it closes, is put right from the archive.
    assert of(CheckRounds, effects) == ([CheckRounds(suspects=(0, 1))] if is_warned else [])


def test_fresh_run_refuses_a_name_already_on_the_broker() -> None:
    machine = coordinator(settings())
    machine.handle(SessionOpened(session_present=False), 0.0)
    (stop,) = machine.handle(seen(settings(), epoch=3, retained=True), 0.1)
    assert isinstance(stop, Stop)
    assert stop.failed
    assert "--resume" in stop.reason


def test_resumed_run_takes_the_next_epoch_and_reopens_its_round_with_the_same_cohort() -> None:
    position = Position(epoch=4, round_number=7, cohort=("n0", "n1"), global_digest=GLOBAL)
    machine = coordinator(settings(num_rounds=9), position=position, is_resumed=True)
    machine.handle(SessionOpened(session_present=False), 0.0)
    effects = machine.handle(seen(settings(), epoch=6, retained=True), 0.1)
    (opened,) = of(PublishRound, effects)
    assert (opened.plan.round_number, opened.plan.cohort, opened.plan.epoch) == (7, ["n0", "n1"], 7)


def test_resumed_run_without_its_checkpoint_does_not_overwrite_history() -> None:
    machine = coordinator(settings(), is_resumed=True)
    machine.handle(SessionOpened(session_present=False), 0.0)
    (stop,) = machine.handle(StateSeen(state=state(settings(), epoch=3, round_number=2), retained=True), 0.1)
    assert isinstance(stop, Stop)
    assert "fedmq recover" in stop.reason


def test_higher_epoch_silences_this_aggregator_without_a_word_on_the_broker() -> None:
    machine, _ = started(settings())
    (stop,) = machine.handle(seen(settings(), epoch=2, retained=False), 2.0)
    assert isinstance(stop, Stop)
    assert stop.failed
    assert machine.phase is Phase.ENDED


def test_own_state_echo_is_ignored() -> None:
    machine, _ = started(settings())
    assert machine.handle(seen(settings(), epoch=1, retained=False), 2.0) == []


def test_broker_that_lost_its_session_gets_the_round_again_and_what_was_collected_stays() -> None:
    machine, _ = started(settings())
    assert [type(effect) for effect in machine.handle(SessionOpened(session_present=True), 2.0)] == [PublishState]
    effects = machine.handle(SessionOpened(session_present=False), 3.0)
    assert effects[:2] == [FollowRun(), FollowRound(round_number=1, is_again=True)]
    assert [type(effect) for effect in effects[2:]] == [Note, PublishRound, PublishState, CheckRounds]


def test_broker_that_still_has_our_state_is_sent_nothing_again() -> None:
    machine, opened = started(settings())
    published = of(PublishState, opened)[-1]
    assert machine.handle(CheckBegun(), 2.0) == []
    assert machine.handle(StateSeen(state=published.state, retained=True), 2.1) == []
    assert machine.wake_at is not None
    assert machine.wake_at > 2.0 + CHECK_SECONDS
    assert machine.handle(TimePassed(), 2.0 + CHECK_SECONDS) == []


@pytest.mark.parametrize("is_silent", [True, False])
def test_broker_that_forgot_gets_plan_model_and_state_again(*, is_silent: bool) -> None:
    """It holds nothing, or the state before."""
    machine, _ = started(settings())
    machine.handle(CheckBegun(), 2.0)
    if is_silent:
        effects = machine.handle(TimePassed(), 2.0 + CHECK_SECONDS)
    else:
        effects = machine.handle(StateSeen(state=state(settings(), epoch=0), retained=True), 2.1)
    assert [type(effect) for effect in effects] == [Note, PublishRound, PublishState, CheckRounds]
    assert of(CheckRounds, effects) == [CheckRounds(suspects=(1,))]


def test_zombie_of_a_lower_epoch_is_told_and_what_it_wrote_over_is_repaired() -> None:
    position = Position(epoch=5, round_number=1, cohort=(), global_digest=GLOBAL)
    machine = coordinator(settings(), position=position)
    machine.handle(SessionOpened(session_present=False), 0.0)
    machine.handle(TimePassed(), 1.0)
    effects = machine.handle(seen(settings(), epoch=4, retained=False), 2.0)
    (said,) = of(PublishState, effects)
    assert said.state.epoch == 5
    assert of(CheckRounds, effects)


def test_of_two_aggregators_with_one_epoch_the_greater_instance_leads() -> None:
    greater, lesser = (coordinator(settings(), instance=instance) for instance in ("b", "a"))
    for machine in (greater, lesser):
        machine.handle(SessionOpened(session_present=False), 0.0)
        machine.handle(TimePassed(), 1.0)
    (stop,) = lesser.handle(StateSeen(state=state(settings(), epoch=1, instance="b"), retained=False), 2.0)
    assert isinstance(stop, Stop)
    assert stop.is_fenced
    assert of(PublishState, greater.handle(StateSeen(state=state(settings(), epoch=1, instance="a"), retained=False), 2.0))


def test_paused_run_ends_its_round_and_opens_the_next_when_resumed() -> None:
    machine, _ = started(settings())
    assert not of(PublishState, machine.handle(wish("pause"), 1.5))
    for node in ("n0", "n1"):
        machine.handle(completed(node), 2.0)
    machine.handle(AggregationFinished(round_number=1, next_global_digest=NEXT, diagnostics={}), 3.0)
    effects = machine.handle(EvaluationFinished(round_number=1, evaluation=None), 4.0)
    assert not of(PublishRound, effects)
    (said,) = of(PublishState, effects)
    assert (said.state.phase, said.state.round_number, said.state.reason) == ("paused", 1, "paused: holidays")
    effects = machine.handle(wish("resume"), 90_000.0)
    (opened,) = of(PublishRound, effects)
    assert opened.plan.round_number == 2
    assert of(ClearControl, effects)


def test_stop_ends_the_run_and_takes_the_wish_off_the_broker() -> None:
    machine, _ = started(settings())
    effects = machine.handle(wish("stop"), 2.0)
    assert [type(effect) for effect in effects] == [ClearControl, PublishState]
    assert nodes_leave(machine)
    (said,) = of(PublishState, effects)
    assert (said.state.phase, said.state.final_digest) == ("stopped", None)


@pytest.mark.parametrize(("elapsed_seconds", "left_seconds"), [(0.0, 100.0), (30.0, 70.0), (80.0, 50.0), (1e9, 50.0)])
def test_restarted_round_keeps_its_deadline_but_half_of_it_at_least(elapsed_seconds: float, left_seconds: float) -> None:
    position = Position(epoch=1, round_number=1, cohort=("n0", "n1"), global_digest=GLOBAL, elapsed_seconds=elapsed_seconds)
    machine = coordinator(settings(), position=position, is_resumed=True)
    machine.handle(SessionOpened(session_present=False), 0.0)
    machine.handle(TimePassed(), 1.0)
    assert machine.wake_at == pytest.approx(1.0 + left_seconds)


def test_failed_work_stops_the_run_with_a_reason() -> None:
    machine, _ = started(settings())
    effects = machine.handle(WorkFailed(detail="OSError: no space left"), 2.0)
    (last,) = of(PublishState, effects)
    assert last.state.phase == "stopped"
    (stop,) = nodes_leave(machine)
    assert "no space left" in stop.reason


def test_bytes_up_counts_everything_that_came_for_the_round() -> None:
    machine, _ = started(settings())
    machine.handle(UpdateProgressed(round_number=1, node="n0", num_bytes=100), 1.5)
    machine.handle(UpdateProgressed(round_number=1, node="n0", num_bytes=100), 1.6)
    machine.handle(completed("n0"), 2.0)
    machine.handle(completed("n1"), 2.0)
    machine.handle(AggregationFinished(round_number=1, next_global_digest=NEXT, diagnostics={}), 3.0)
    (published,) = of(PublishResult, machine.handle(EvaluationFinished(round_number=1, evaluation=None), 4.0))
    assert published.result.bytes_up == 200
    assert published.result.bytes_down == 2000


def test_run_that_waits_for_its_nodes_sleeps() -> None:
    """The roll call of its start was due for ever: the process was busy doing nothing, and no longer heard its nodes."""
    machine = coordinator(settings())
    machine.handle(SessionOpened(session_present=False), 0.0)
    now = 1.0
    for _ in range(10):
        machine.handle(TimePassed(), now)
        if machine.wake_at is None:
            return
        now = max(now, machine.wake_at)
    raise AssertionError(f"still due at {machine.wake_at}, and it is {now}")
