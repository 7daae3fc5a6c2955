"""The participant alone, on a hand-moved clock."""

from __future__ import annotations

from typing import Literal

import pytest

from edge_node.events import (
    AckReceived,
    Deploy,
    Deployed,
    FetchMissing,
    FollowRound,
    FollowRun,
    GlobalCompleted,
    GlobalProgressed,
    LeaveRound,
    Note,
    Offer,
    PlanReceived,
    PublishStatus,
    SessionOpened,
    StateReceived,
    Stop,
    TimePassed,
    Train,
    TrainingFailed,
    TrainingFinished,
    Upload,
)
from edge_node.participant import (
    ACK_PATIENCE_SECONDS,
    FETCH_PATIENCE_SECONDS,
    FINISH_SECONDS,
    MAX_PATIENCE_SECONDS,
    MAX_RETRIES,
    RETRY_SECONDS,
    Participant,
    Phase,
)
from federation.messages import Ack, Choice, RoundPlan
from tests.machines.builders import GLOBAL, NEXT, settings, state

RUN = settings(num_rounds=5)


def plan(round_number: int = 1, *, cohort: tuple[str, ...] = ("n0", "n1"), digest: str = GLOBAL, epoch: int = 1) -> RoundPlan:
    return RoundPlan(
        run="r",
        round_number=round_number,
        epoch=epoch,
        cohort=list(cohort),
        deadline_seconds=100.0,
        seed=0,
        model=RUN.model,
        training=RUN.training,
        learning_rate=0.001,
        method=Choice(name="fedavg"),
        codec=Choice(name="float32"),
        num_nodes=2,
        global_digest=digest,
        global_bytes=1000,
    )


def ack(
    outcome: Literal["accepted", "rejected", "discarded", "incomplete"],
    *,
    round_number: int = 1,
    epoch: int = 1,
    missing: tuple[int, ...] = (),
) -> AckReceived:
    return AckReceived(ack=Ack(run="r", round_number=round_number, epoch=epoch, node="n0", outcome=outcome, missing=list(missing)))


def following(round_number: int = 1) -> Participant:
    machine = Participant(node="n0")
    machine.handle(SessionOpened(session_present=False), 0.0)
    machine.handle(StateReceived(state=state(RUN, epoch=1, round_number=round_number)), 0.0)
    return machine


def training() -> Participant:
    machine = following()
    machine.handle(PlanReceived(plan=plan()), 1.0)
    machine.handle(GlobalCompleted(round_number=1, digest=GLOBAL), 2.0)
    return machine


def uploading() -> Participant:
    machine = training()
    machine.handle(TrainingFinished(round_number=1, base_digest=GLOBAL), 3.0)
    return machine


def test_joins_the_current_round() -> None:
    machine = Participant(node="n0")
    assert machine.handle(SessionOpened(session_present=False), 0.0) == [FollowRun(), PublishStatus()]
    assert machine.handle(StateReceived(state=state(RUN, epoch=1, round_number=3)), 0.0) == [PublishStatus(), FollowRound(round_number=3)]


def test_follows_the_coming_round_of_a_waiting_run() -> None:
    machine = Participant(node="n0")
    waiting = state(RUN, epoch=1, phase="waiting", round_number=0)
    assert machine.handle(StateReceived(state=waiting), 0.0) == [PublishStatus(), FollowRound(round_number=1)]
    assert machine.handle(StateReceived(state=state(RUN, epoch=1, round_number=1)), 1.0) == []


def test_node_that_sits_out_logs_why_once() -> None:
    """A Pi whose classes are named otherwise said nothing at all in its own log."""
    machine = Participant(node="n1")
    verdict = "n1 sits out: its class 0 is 'basophil', this run's 'neutrophil': set FEDMQ_CLASS_NAMES on the node to the run's classes"
    reason = f"waiting for nodes: 1 of at least 2 are fit; n0 offline; {verdict}"
    waiting = state(RUN, epoch=1, round_number=0, phase="waiting").model_copy(update={"reason": reason})
    notes = [effect for effect in machine.handle(StateReceived(state=waiting), 0.0) if isinstance(effect, Note)]
    assert notes == [Note(text=f"the aggregator says: {verdict}", warning=True)]
    assert machine.handle(StateReceived(state=waiting), 1.0) == []


def test_trains_uploads_deploys_and_follows_the_next_round() -> None:
    machine = following()
    assert machine.handle(PlanReceived(plan=plan()), 1.0) == []
    assert machine.handle(GlobalCompleted(round_number=1, digest=GLOBAL), 2.0) == [Train(plan=plan())]
    effects = machine.handle(TrainingFinished(round_number=1, base_digest=GLOBAL), 3.0)
    assert effects == [Upload(round_number=1), Deploy(round_number=1, model=RUN.model, global_digest=GLOBAL)]
    effects = [effect for effect in machine.handle(ack("accepted"), 4.0) if not isinstance(effect, Note)]
    assert effects == [LeaveRound(round_number=1), FollowRound(round_number=2)]
    assert machine.phase is Phase.IDLE


def test_global_model_may_come_before_the_plan() -> None:
    machine = following()
    assert machine.handle(GlobalCompleted(round_number=1, digest=GLOBAL), 1.0) == []
    assert machine.handle(PlanReceived(plan=plan()), 2.0) == [Train(plan=plan())]


def test_node_outside_the_cohort_waits() -> None:
    machine = following()
    machine.handle(PlanReceived(plan=plan(cohort=("n1",))), 1.0)
    assert machine.handle(GlobalCompleted(round_number=1, digest=GLOBAL), 2.0) == []
    assert machine.handle(StateReceived(state=state(RUN, epoch=1, round_number=2)), 3.0) == [
        LeaveRound(round_number=1),
        FollowRound(round_number=2),
    ]


def test_only_missing_chunks_are_sent_again() -> None:
    assert uploading().handle(ack("incomplete", missing=(1, 4)), 4.0) == [Upload(round_number=1, missing=(1, 4))]


def test_update_without_an_ack_is_offered_again_ever_more_rarely() -> None:
    machine = uploading()
    waits = []
    now = 3.0
    for _ in range(6):
        assert machine.wake_at is not None
        waits.append(machine.wake_at - now)
        now = machine.wake_at
        assert machine.handle(TimePassed(), now) == [Offer(round_number=1)]
    assert waits[:3] == [ACK_PATIENCE_SECONDS, 2 * ACK_PATIENCE_SECONDS, 4 * ACK_PATIENCE_SECONDS]
    assert max(waits) == MAX_PATIENCE_SECONDS


def test_stalled_download_is_asked_for_again_only_when_nothing_comes() -> None:
    machine = following()
    machine.handle(PlanReceived(plan=plan()), 1.0)
    machine.handle(GlobalProgressed(round_number=1), 4.0)
    assert machine.handle(TimePassed(), 1.0 + FETCH_PATIENCE_SECONDS) == []
    assert machine.handle(TimePassed(), 4.0 + FETCH_PATIENCE_SECONDS) == [FetchMissing(round_number=1)]


def test_lost_session_is_put_back_and_an_upload_offered_again() -> None:
    machine = uploading()
    effects = machine.handle(SessionOpened(session_present=False), 5.0)
    assert effects == [FollowRun(), FollowRound(round_number=1), PublishStatus(), Offer(round_number=1)]
    assert machine.handle(SessionOpened(session_present=True), 6.0) == [PublishStatus(), Offer(round_number=1)]


def test_restarted_node_offers_its_stored_update_instead_of_sending_it() -> None:
    machine = training()
    first, _ = machine.handle(TrainingFinished(round_number=1, base_digest=GLOBAL, is_old=True), 3.0)
    assert first == Offer(round_number=1)


def test_straggler_drops_its_work_when_the_round_is_over() -> None:
    machine = training()
    effects = machine.handle(StateReceived(state=state(RUN, epoch=1, round_number=2)), 3.0)
    assert effects == [LeaveRound(round_number=1), FollowRound(round_number=2)]
    assert machine.handle(TrainingFinished(round_number=1, base_digest=GLOBAL), 4.0) == []


def test_failed_training_is_told_and_the_next_round_tried_afresh() -> None:
    machine = training()
    _, told = machine.handle(TrainingFailed(round_number=1, detail="out of memory"), 3.0)
    assert isinstance(told, PublishStatus)
    assert "out of memory" in told.problem
    effects = machine.handle(StateReceived(state=state(RUN, epoch=1, round_number=2)), 4.0)
    assert effects == [LeaveRound(round_number=1), PublishStatus(), FollowRound(round_number=2)]


def test_failed_training_is_tried_again_within_the_round() -> None:
    machine = training()
    machine.handle(TrainingFailed(round_number=1, detail="disk full"), 3.0)
    assert machine.wake_at == 3.0 + RETRY_SECONDS
    _, again = machine.handle(TimePassed(), 8.0)
    assert again == Train(plan=plan())
    machine.handle(TrainingFailed(round_number=1, detail="disk full"), 9.0)
    assert machine.wake_at == 9.0 + 2 * RETRY_SECONDS
    machine.handle(TimePassed(), 19.0)
    effects = machine.handle(TrainingFinished(round_number=1, base_digest=GLOBAL), 20.0)
    assert effects[:2] == [PublishStatus(), Upload(round_number=1)]


def test_what_fails_always_is_not_tried_for_ever() -> None:
    machine = training()
    for _ in range(MAX_RETRIES):
        machine.handle(TrainingFailed(round_number=1, detail="diverged"), 3.0)
        assert machine.wake_at is not None
        machine.handle(TimePassed(), machine.wake_at)
    machine.handle(TrainingFailed(round_number=1, detail="diverged"), 3.0)
    assert machine.wake_at is None


def test_restarted_aggregator_with_the_same_model_disturbs_nothing() -> None:
    machine = training()
    assert machine.handle(PlanReceived(plan=plan(epoch=2)), 2.5) == [PublishStatus()]
    assert machine.phase is Phase.TRAINING
    machine = uploading()
    assert machine.handle(PlanReceived(plan=plan(epoch=2)), 4.0) == [PublishStatus(), Offer(round_number=1)]


def test_new_leader_may_repeat_a_round_but_a_zombie_may_not() -> None:
    machine = uploading()
    machine.handle(ack("accepted"), 4.0)
    assert machine.round_number == 2
    assert machine.handle(StateReceived(state=state(RUN, epoch=1, round_number=1)), 5.0) == []
    repeated = machine.handle(StateReceived(state=state(RUN, epoch=2, round_number=1)), 6.0)
    assert repeated == [PublishStatus(), LeaveRound(round_number=2), FollowRound(round_number=1)]
    (note,) = machine.handle(StateReceived(state=state(RUN, epoch=1, round_number=2)), 7.0)
    assert isinstance(note, Note)
    assert machine.round_number == 1


def test_zombie_s_acks_are_ignored() -> None:
    machine = uploading()
    machine.handle(StateReceived(state=state(RUN, epoch=2, round_number=1)), 4.0)
    assert machine.handle(ack("accepted", epoch=1), 5.0) == []
    assert machine.phase is Phase.UPLOADING


@pytest.mark.parametrize("arrives_first", [True, False])
def test_finished_run_leaves_its_final_model_on_the_device(*, arrives_first: bool) -> None:
    machine = uploading()
    machine.handle(ack("accepted"), 4.0)
    finished = state(RUN, epoch=1, phase="finished", round_number=1).model_copy(update={"final_digest": NEXT})
    deploy = Deploy(round_number=2, model=RUN.model, global_digest=NEXT)
    if arrives_first:
        machine.handle(GlobalCompleted(round_number=2, digest=NEXT), 5.0)
        assert machine.handle(StateReceived(state=finished), 6.0) == [deploy]
    else:
        assert machine.handle(StateReceived(state=finished), 5.0) == []
        assert machine.handle(GlobalCompleted(round_number=2, digest=NEXT), 6.0) == [deploy]
    (stop,) = machine.handle(Deployed(round_number=2), 7.0)
    assert isinstance(stop, Stop)


def test_final_model_that_never_comes_does_not_hold_the_node_for_ever() -> None:
    machine = following()
    finished = state(RUN, epoch=1, phase="finished", round_number=5).model_copy(update={"final_digest": NEXT})
    assert machine.handle(StateReceived(state=finished), 5.0) == [LeaveRound(round_number=1), FollowRound(round_number=6)]
    effects = machine.handle(TimePassed(), 5.0 + FINISH_SECONDS)
    assert isinstance(effects[-1], Stop)


def test_stopped_run_ends_the_node() -> None:
    machine = following()
    (stop,) = machine.handle(StateReceived(state=state(RUN, epoch=1, phase="stopped")), 2.0)
    assert isinstance(stop, Stop)
    assert machine.handle(PlanReceived(plan=plan()), 3.0) == []
