"""The participant: decides what one node does in a run, and does nothing itself.

    IDLE --plan names us--> FETCHING --global model whole--> TRAINING --> UPLOADING --ack--> IDLE (next round)
    any of these --disk or training fails--> RETRYING --RETRY_SECONDS--> FETCHING or TRAINING
    any --run finished--> FINISHING --final model whole and deployed--> ENDED

`handle(event, now)` returns the effects to perform, in order. No I/O, no clock, no threads.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import assert_never

from edge_node.events import (
    AckReceived,
    Deploy,
    Deployed,
    DiskFailed,
    Effect,
    EffectFailed,
    Event,
    FetchFailed,
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
    UpdateLost,
    Upload,
)
from federation.messages import RoundPlan, RunState
from federation.settings import ModelSettings

FINISH_SECONDS = 600.0
"""A node waits so long for the final model, then leaves without it."""

FETCH_PATIENCE_SECONDS = 5.0
"""The broker is asked again for missing chunks of the global model after so long without any; doubles each time."""

ACK_PATIENCE_SECONDS = 10.0
"""An update is offered again after so long without an ack; doubles each time."""

RETRY_SECONDS = 5.0
"""What failed here, a full disk perhaps, is tried again in the same round after so long; doubles each time."""

MAX_RETRIES = 8
"""After so many, nine minutes, a node sits the round out to its end: what still fails then, fails always."""

MAX_PATIENCE_SECONDS = 120.0
"""Bound of all three, so that a node never sleeps through a round."""


class Phase(Enum):
    """What the participant is waiting for."""

    IDLE = auto()
    FETCHING = auto()
    TRAINING = auto()
    UPLOADING = auto()
    RETRYING = auto()
    FINISHING = auto()
    ENDED = auto()


class Participant:
    """One node's machine."""

    def __init__(self, *, node: str) -> None:
        self._node = node
        self._round_number: int | None = None
        self._epoch = 0
        self._answered = (-1, -1)
        self._plan: RoundPlan | None = None
        self._global_digest: str | None = None
        self._patience_seconds = 0.0
        self._problem = ""
        self._verdict = ""
        """What the run's state says of this node; empty where it says nothing."""
        self._num_retries = 0
        self._final: tuple[str, ModelSettings] | None = None
        self._give_up_at: float | None = None
        self.phase = Phase.IDLE
        self.wake_at: float | None = None

    @property
    def round_number(self) -> int | None:
        """The round this node follows, if any."""
        return self._round_number

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event; return what to do, in order."""
        if self.phase is Phase.ENDED:
            return []
        match event:
            case SessionOpened():
                return self._on_session_opened(event, now)
            case StateReceived():
                return self._on_state(event, now)
            case PlanReceived():
                return self._on_plan(event, now)
            case GlobalProgressed():
                if self.phase in {Phase.FETCHING, Phase.FINISHING} and event.round_number == self._round_number:
                    self._be_patient(FETCH_PATIENCE_SECONDS, now)
                return []
            case GlobalCompleted():
                return self._on_global(event)
            case FetchFailed():
                return self._on_fetch_failed(event, now)
            case DiskFailed():
                return self._on_effect_failed(f"the disk failed: {event.detail}", now)
            case EffectFailed():
                return self._on_effect_failed(event.detail, now)
            case TrainingFinished():
                return self._on_trained(event, now)
            case TrainingFailed():
                return self._on_training_failed(event, now)
            case UpdateLost():
                return self._on_update_lost(event)
            case Deployed():
                return self._on_deployed(event)
            case AckReceived():
                return self._on_ack(event, now)
            case TimePassed():
                return self._on_time_passed(now)
        assert_never(event)

    def _on_session_opened(self, event: SessionOpened, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if not event.session_present:
            effects.append(FollowRun())
            if self._round_number is not None:
                effects.append(FollowRound(round_number=self._round_number))
        # Our will may have been published meanwhile: say that we are here in any case.
        effects.append(PublishStatus(problem=self._problem))
        if self.phase is Phase.UPLOADING and self._round_number is not None:
            effects.append(Offer(round_number=self._round_number))
            self._be_patient(ACK_PATIENCE_SECONDS, now)
        return effects

    def _on_state(self, event: StateReceived, now: float) -> list[Effect]:
        state = event.state
        if state.epoch < self._epoch:
            return [Note(text=f"ignored a state of epoch {state.epoch}: epoch {self._epoch} leads", warning=True)]
        is_new_leader = state.epoch > self._epoch
        greeting = self._greet(state.epoch, state.roll_call)
        if self.phase is Phase.FINISHING:
            return greeting
        return [*greeting, *self._note_verdict(state), *self._follow_state(state, is_new_leader=is_new_leader, now=now)]

    def _note_verdict(self, state: RunState) -> list[Effect]:
        """Log why the run waits for others than this node, where it says so: its owner looks here first."""
        verdict = next((part for part in state.reason.split("; ") if part.startswith(f"{self._node} ")), "")
        is_new, self._verdict = verdict != self._verdict, verdict
        return [Note(text=f"the aggregator says: {verdict}", warning=True)] if verdict and is_new else []

    def _greet(self, epoch: int, roll_call: int) -> list[Effect]:
        """Take a message's epoch and roll call; say again who we are where either is new to us.

        The aggregator may know of us only what the broker still holds: nothing, or what a device that is gone had said.
        """
        is_called = (epoch, roll_call) != self._answered
        self._epoch, self._answered = epoch, (epoch, roll_call)
        return [PublishStatus(problem=self._problem)] if is_called else []

    def _follow_state(self, state: RunState, *, is_new_leader: bool, now: float) -> list[Effect]:
        if state.phase == "finished" and state.final_digest is not None:
            self._final = state.final_digest, state.model
            effects = [] if self._round_number == state.round_number + 1 else self._follow(state.round_number + 1)
            self.phase = Phase.FINISHING
            self._give_up_at = now + FINISH_SECONDS
            self._be_patient(FETCH_PATIENCE_SECONDS, now)
            return [*effects, *self._deploy_final()]
        if state.phase in {"finished", "stopped"}:
            return self._end(state.reason or state.phase)
        round_number = state.round_number if state.phase == "training" else state.round_number + 1
        is_ahead = self._round_number is not None and round_number < self._round_number
        if round_number == self._round_number or (is_ahead and not is_new_leader):
            return []
        # A new leader may have to repeat a round whose updates the broker lost.
        return self._follow(round_number)

    def _on_plan(self, event: PlanReceived, now: float) -> list[Effect]:
        plan = event.plan
        if plan.round_number != self._round_number or plan.epoch < self._epoch:
            return []
        return [*self._greet(plan.epoch, self._answered[1] if plan.epoch == self._epoch else 0), *self._follow_plan(plan, now)]

    def _follow_plan(self, plan: RoundPlan, now: float) -> list[Effect]:
        if self._plan is not None and self._plan.global_digest == plan.global_digest:
            # The same round again, from a restarted aggregator: what runs goes on.
            self._plan = plan
            if self.phase is Phase.UPLOADING:
                self._be_patient(ACK_PATIENCE_SECONDS, now)
                return [Offer(round_number=plan.round_number)]
            return []
        self._plan = plan
        if self._node not in plan.cohort:
            self.phase = Phase.IDLE
            self.wake_at = None
            return [Note(text=f"round={plan.round_number} not in the cohort")]
        if self._global_digest == plan.global_digest:
            return self._train(plan)
        self.phase = Phase.FETCHING
        self._be_patient(FETCH_PATIENCE_SECONDS, now)
        return []

    def _on_global(self, event: GlobalCompleted) -> list[Effect]:
        if event.round_number != self._round_number:
            return []
        self._global_digest = event.digest
        if self.phase is Phase.FINISHING:
            return self._deploy_final()
        if self.phase is not Phase.FETCHING or self._plan is None:
            return []
        if event.digest != self._plan.global_digest:
            return [Note(text=f"round={event.round_number} global model {event.digest[:12]} is not the plan's", warning=True)]
        return self._train(self._plan)

    def _on_trained(self, event: TrainingFinished, now: float) -> list[Effect]:
        if self.phase is not Phase.TRAINING or self._plan is None or event.round_number != self._round_number:
            return []
        if event.base_digest != self._plan.global_digest:
            return []
        self.phase = Phase.UPLOADING
        self._be_patient(ACK_PATIENCE_SECONDS, now)
        # Measured while the other nodes train and the aggregator works; of a short round, the next training waits for the rest of it.
        deploy = Deploy(round_number=event.round_number, model=self._plan.model, global_digest=event.base_digest)
        sending = Offer(round_number=event.round_number) if event.is_old else Upload(round_number=event.round_number)
        return [*self._recover(), sending, deploy]

    def _on_training_failed(self, event: TrainingFailed, now: float) -> list[Effect]:
        if event.round_number != self._round_number or self.phase is not Phase.TRAINING:
            return []
        return self._sit_out(f"round {event.round_number}: training failed: {event.detail}", now)

    def _on_fetch_failed(self, event: FetchFailed, now: float) -> list[Effect]:
        problem = f"round {event.round_number}: the global model can't be stored: {event.detail}"
        if event.round_number != self._round_number or self.phase not in {Phase.IDLE, Phase.FETCHING, Phase.RETRYING, Phase.FINISHING}:
            return []
        if self.phase is Phase.FINISHING:
            # Asked for again as long as this node waits for the final model: somebody may make room.
            return [Note(text=problem, warning=True)]
        return self._sit_out(problem, now)

    def _on_effect_failed(self, detail: str, now: float) -> list[Effect]:
        if self.phase is Phase.FINISHING:
            return []
        where = f"round {self._round_number}: " if self._round_number is not None else ""
        return self._sit_out(f"{where}{detail}", now)

    def _on_update_lost(self, event: UpdateLost) -> list[Effect]:
        if self.phase is not Phase.UPLOADING or self._plan is None or event.round_number != self._round_number:
            return []
        # To the same bytes, so that what the aggregator holds of it still counts.
        note = Note(text=f"round={event.round_number} the stored update is gone or damaged; training it again", warning=True)
        return [note, *self._train(self._plan)]

    def _on_deployed(self, event: Deployed) -> list[Effect]:
        if self.phase is Phase.FINISHING and event.round_number == self._round_number:
            return self._end("the run has finished")
        return []

    def _on_ack(self, event: AckReceived, now: float) -> list[Effect]:
        ack = event.ack
        if ack.round_number != self._round_number or ack.epoch < self._epoch or ack.node != self._node:
            return []
        if ack.outcome == "incomplete":
            if self.phase is not Phase.UPLOADING:
                return []
            self._be_patient(ACK_PATIENCE_SECONDS, now)
            return [Upload(round_number=ack.round_number, missing=tuple(ack.missing))]
        reason = f" reason={ack.reason!r}" if ack.reason else ""
        note = Note(text=f"round={ack.round_number} update={ack.outcome}{reason}", warning=ack.outcome == "rejected")
        return [note, *self._follow(ack.round_number + 1)]

    def _on_time_passed(self, now: float) -> list[Effect]:
        if self.wake_at is None or now < self.wake_at or self._round_number is None:
            return []
        if self._give_up_at is not None and now >= self._give_up_at:
            return [Note(text="the final model did not come", warning=True), *self._end("the run has finished")]
        if self.phase is Phase.RETRYING:
            return self._retry(self._round_number, now)
        self._patience_seconds = min(2 * self._patience_seconds, MAX_PATIENCE_SECONDS)
        self.wake_at = now + self._patience_seconds
        if self.phase in {Phase.IDLE, Phase.FETCHING, Phase.FINISHING}:
            return [FetchMissing(round_number=self._round_number)]
        return [Offer(round_number=self._round_number)]

    def _follow(self, round_number: int) -> list[Effect]:
        effects: list[Effect] = []
        if self._round_number is not None:
            effects.append(LeaveRound(round_number=self._round_number))
        self._round_number = round_number
        self._plan = None
        self._global_digest = None
        self.phase = Phase.IDLE
        self.wake_at = None
        # A failure costs the round it happened in at most; the next one is tried afresh.
        self._num_retries = 0
        return [*effects, *self._recover(), FollowRound(round_number=round_number)]

    def _recover(self) -> list[Effect]:
        """Take back what we said was wrong."""
        if not self._problem:
            return []
        self._problem = ""
        return [PublishStatus()]

    def _deploy_final(self) -> list[Effect]:
        if self._final is None or self._round_number is None or self._global_digest != self._final[0]:
            return []
        digest, model = self._final
        self.wake_at = self._give_up_at
        return [Deploy(round_number=self._round_number, model=model, global_digest=digest)]

    def _sit_out(self, problem: str, now: float) -> list[Effect]:
        """Say what fails, and try again later in the round: somebody may make room, and the others may be waiting for us."""
        self.phase = Phase.RETRYING
        self.wake_at = None
        if self._round_number is not None and self._num_retries < MAX_RETRIES:
            self.wake_at = now + min(RETRY_SECONDS * 2**self._num_retries, MAX_PATIENCE_SECONDS)
            self._num_retries += 1
        self._problem = problem[:500]
        return [Note(text=self._problem, warning=True), PublishStatus(problem=self._problem)]

    def _retry(self, round_number: int, now: float) -> list[Effect]:
        """Take up the round again where it can go on: with the model that is here, or by fetching it."""
        note = Note(text=f"round={round_number} trying again")
        plan = self._plan
        if plan is not None and plan.global_digest == self._global_digest:
            return [note, *self._train(plan)]
        self.phase = Phase.IDLE if plan is None else Phase.FETCHING
        self._be_patient(FETCH_PATIENCE_SECONDS, now)
        return [note, FetchMissing(round_number=round_number)]

    def _end(self, reason: str) -> list[Effect]:
        self.phase = Phase.ENDED
        self.wake_at = None
        return [Stop(reason=reason)]

    def _train(self, plan: RoundPlan) -> list[Effect]:
        self.phase = Phase.TRAINING
        self.wake_at = None
        return [Train(plan=plan)]

    def _be_patient(self, seconds: float, now: float) -> None:
        self._patience_seconds = seconds
        self.wake_at = now + seconds
