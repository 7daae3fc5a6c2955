"""The coordinator: decides everything about a run's rounds, and does nothing itself.

    STARTING --state settled--> WAITING --min_nodes fit--> COLLECTING --all answered, grace or deadline-->
    AGGREGATING --> EVALUATING --> WAITING (next round) ... --> LEAVING --all nodes gone--> ENDED

`handle(event, now)` returns the effects to perform, in order. No I/O, no clock, no threads: the service
carries events in and performs effects, tests and the simulator do the same on a hand-moved clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum, auto
from typing import Literal, TypeAlias, assert_never

from aggregator.attendance import Attendance
from aggregator.cohort import Expectation, draw_cohort
from aggregator.events import (
    Aggregate,
    AggregationFinished,
    AggregationRefused,
    CheckBegun,
    CheckRounds,
    ClearControl,
    ControlSeen,
    Effect,
    Evaluate,
    EvaluationFinished,
    Event,
    FollowRound,
    FollowRun,
    ForeignMessage,
    LeaveRound,
    NodeReported,
    Note,
    Position,
    PublishFinal,
    PublishResult,
    PublishRound,
    PublishState,
    SaveCheckpoint,
    SessionOpened,
    StateSeen,
    Stop,
    TimePassed,
    UpdateCompleted,
    UpdateOffered,
    UpdateProgressed,
    UpdateRefused,
    WorkFailed,
)
from aggregator.open_round import LATE, Member, OpenRound, UpdateEvent, ack_of
from aggregator.roster import Roster
from aggregator.round_messages import fleet_size, plan_of, result_of, state_of
from aggregator.setback import best_accuracy, setback_of
from federation.messages import Evaluation, RoundPlan, RoundResult, RunState
from federation.settings import MIN_PRIVATE_NODES, RunSettings

START_SECONDS = 0.5
"""How long a starting aggregator waits for a predecessor's retained state."""

LEAVE_SECONDS = 60.0
"""How long an ended run waits for its nodes to fetch the final model and leave."""

CHECK_SECONDS = 2.0
"""How long the broker may take to show us the state we gave it before we believe that it has lost it."""


Sign: TypeAlias = Callable[[RoundResult], RoundResult]
"""Completes a result, which is final from then on: when it was made, and whose it is."""


class Phase(Enum):
    """What the coordinator is waiting for."""

    STARTING = auto()
    WAITING = auto()
    COLLECTING = auto()
    AGGREGATING = auto()
    EVALUATING = auto()
    LEAVING = auto()
    ENDED = auto()


class Coordinator:
    """The aggregator's machine.

    Args:
        settings: the run's.
        expectation: what nodes and updates must be like.
        position: where to begin: fresh, or from a checkpoint.
        is_resumed: the run may be on the broker already.
        instance: random per process: of two aggregators with one epoch, the greater leads.
        sign: completes each result; None publishes it as it is.
    """

    def __init__(
        self,
        *,
        settings: RunSettings,
        expectation: Expectation,
        position: Position,
        is_resumed: bool,
        instance: str = "-",
        sign: Sign | None = None,
    ) -> None:
        self._settings = settings
        self._expectation = expectation
        self._position = position
        self._is_resumed = is_resumed
        self._instance = instance
        self._sign = sign
        self._is_paused = False
        self._pause_reason = ""
        self._published: list[RunState] = []
        self._check_at: float | None = None
        self._leave_at = 0.0
        self._stay_until: float | None = None
        self._stop = Stop(reason="", failed=False)
        self._ended: Literal["finished", "stopped"] = "finished"
        self._attendance = Attendance(max_missed_rounds=settings.rounds.max_missed_rounds)
        self._roster = Roster(expectation, self._attendance, min_nodes=settings.rounds.min_nodes)
        self._roll_call = 0
        self._round: OpenRound | None = None
        self._started_at: float | None = None
        self.phase = Phase.STARTING

    # --- what the service may ask ---------------------------------------------------------------

    @property
    def position(self) -> Position:
        """Where the run stands."""
        return self._position

    @property
    def num_finished(self) -> int:
        """How many rounds are over."""
        return self._position.round_number - (0 if self._position.finished else 1)

    @property
    def is_checking(self) -> bool:
        """Whether the broker has yet to show us the state we gave it."""
        return self._check_at is not None

    @property
    def wake_at(self) -> float | None:
        """When `TimePassed` is due, on the clock of `now`; None while nothing is timed."""
        if self.phase is Phase.STARTING:
            return None if self._started_at is None else self._started_at + START_SECONDS
        round_at = self._round.wake_at if self.phase is Phase.COLLECTING and self._round is not None else None
        leave_at = self._leave_at if self.phase is Phase.LEAVING else None
        roll_at = self._attendance.ends_at if self.phase in {Phase.WAITING, Phase.LEAVING} else None
        times = (round_at, self._check_at, leave_at, self._stay_until, roll_at)
        return min((time for time in times if time is not None), default=None)

    def expects(self, node: str, round_number: int) -> bool:
        """Return whether bytes of this node's update are still worth storing."""
        if self.phase is not Phase.COLLECTING or self._round is None or self._round.number != round_number:
            return False
        return self._round.expects(node)

    def fit_nodes(self) -> list[str]:
        """Return the nodes that can take part now, in node-id order."""
        return self._roster.fit(self._position.round_number)

    def awaited(self) -> list[str]:
        """Return the nodes whose updates the open round waits for, in node-id order."""
        if self.phase is not Phase.COLLECTING or self._round is None:
            return []
        return [node for node in sorted(self._round.members) if self._round.expects(node)]

    def forget(self, node: str) -> None:
        """Know a node no more, until it speaks again: what it said of itself could not be handled."""
        self._roster.forget(node)

    # --- events ---------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take in one event; return what to do, in order."""
        if self.phase is Phase.ENDED:
            return []
        match event:
            case SessionOpened():
                return self._on_session_opened(event, now)
            case StateSeen():
                return self._on_state_seen(event, now)
            case ForeignMessage():
                return self._put_back(event.round_number) if self.phase is not Phase.STARTING else []
            case CheckBegun():
                self._check_at = now + CHECK_SECONDS
                self._published = self._published[-1:]
                return []
            case ControlSeen():
                return self._on_control(event, now)
            case NodeReported():
                return self._on_node_reported(event, now)
            case UpdateProgressed() | UpdateOffered() | UpdateCompleted() | UpdateRefused():
                return self._on_update(event, now)
            case AggregationFinished():
                return self._on_aggregated(event, now)
            case AggregationRefused():
                return self._on_aggregation_refused(event, now)
            case EvaluationFinished():
                return self._on_evaluated(event, now)
            case WorkFailed() if self.phase is Phase.LEAVING:
                return []
            case WorkFailed():
                return self._end(f"the aggregator's work failed: {event.detail}", now, failed=True)
            case TimePassed():
                return self._on_time_passed(now)
        assert_never(event)

    def _on_session_opened(self, event: SessionOpened, now: float) -> list[Effect]:
        if self.phase is Phase.STARTING:
            if event.session_present:
                return []
            self._started_at = now
            return [FollowRun()]
        # While we were away the broker may have failed together with a node, whose status nobody takes back then.
        self._attendance.call_roll(now)
        self._roll_call += 1
        if event.session_present:
            return self._say_again()
        # A broker that has forgotten our session was started anew, and may have lost anything it had acknowledged.
        is_collecting = self.phase is Phase.COLLECTING and self._round is not None
        following = [FollowRound(round_number=self._position.round_number, is_again=True)] if is_collecting else []
        return [FollowRun(), *following, *self._put_back()]

    def _say_again(self) -> list[Effect]:
        """Publish the run's state as it is, with the number of the newest roll call."""
        return self._say(reason=self._stop.reason, ended=self._ended) if self.phase is Phase.LEAVING else self._say()

    def _on_state_seen(self, event: StateSeen, now: float) -> list[Effect]:
        if self.phase is Phase.STARTING and event.retained:
            if not self._is_resumed:
                reason = f"run {self._settings.run!r} is on this broker already; choose another name, or continue it with --resume"
                return self._give_way(reason)
            if event.state.round_number > self._position.round_number:
                reason = (
                    f"the broker knows round {event.state.round_number} of this run, "
                    f"the checkpoint only round {self._position.round_number}: "
                    f"rebuild it with `fedmq recover {self._settings.run}`, or choose another run name"
                )
                return self._give_way(reason)
            self._position = replace(self._position, epoch=max(self._position.epoch, event.state.epoch + 1))
            return self._leave_starting(now)
        theirs, ours = (event.state.epoch, event.state.instance), (self._position.epoch, self._instance)
        if theirs > ours:
            return self._give_way(f"another aggregator leads this run (epoch {event.state.epoch})")
        if theirs < ours and not event.retained and self.phase is not Phase.STARTING:
            # A zombie spoke before it knew of us; this tells it, and repairs what it wrote over.
            return [Note(text=f"aggregator of epoch {event.state.epoch} is still speaking", warning=True), *self._put_back()]
        if event.retained and self._check_at is not None:
            self._check_at = None
            return [] if event.state in self._published else self._put_back()
        return []

    def _put_back(self, *suspects: int) -> list[Effect]:
        """Publish again what the broker does not hold any more, or may not hold as it was."""
        self._check_at = None
        effects: list[Effect] = [Note(text="the broker may have lost what it held of this run; putting it back", warning=True)]
        current = self._round
        if self.phase is Phase.LEAVING:
            return [*effects, *self._last_words(), CheckRounds(suspects=suspects)]
        if current is not None and self.phase is Phase.COLLECTING:
            effects.append(PublishRound(plan=self._plan(current)))
        return [*effects, *self._say(), CheckRounds(suspects=(*suspects, *([current.number] if current else [])))]

    def _on_control(self, event: ControlSeen, now: float) -> list[Effect]:
        if self.phase is Phase.LEAVING:
            return []
        control = event.control
        reason = control.reason or "by the operator"
        match control.wanted:
            case "stop":
                return [ClearControl(), *self._end(f"stopped: {reason}", now, failed=False, ended="stopped")]
            case "pause" if not self._is_paused:
                # A round that is open goes on to its end: its nodes are at work already.
                self._is_paused = True
                self._pause_reason = reason
                return [Note(text=f"paused: {reason}"), *(self._say() if self.phase is Phase.WAITING else [])]
            case "resume":
                self._is_paused = False
                opening = [*self._say(), *self._open_round_if_possible(now)] if self.phase is Phase.WAITING else []
                return [Note(text=f"resumed: {reason}"), ClearControl(), *opening]
        return []

    def _on_node_reported(self, event: NodeReported, now: float) -> list[Effect]:
        report = self._roster.take(event, now, is_leaving=self.phase is Phase.LEAVING)
        if report is None:
            return []
        opening: list[Effect] = []
        if self.phase is Phase.WAITING:
            # Or say anew what the run waits for.
            opening = self._open_round_if_possible(now) or ([] if self._state() in self._published[-1:] else self._say())
        # One of two may have published its update of a round that the other has taken part in, or be about to.
        number = self._position.round_number
        checking: list[Effect] = [CheckRounds(suspects=(number - 1, number))] if report.is_twin else []
        return [*report.notes, *checking, *opening, *self._leave_if_due(now)]

    def _on_update(self, event: UpdateEvent, now: float) -> list[Effect]:
        current = self._round
        self._attendance.hear(event.node)
        if self.phase is not Phase.COLLECTING or current is None or current.number != event.round_number:
            return [] if isinstance(event, UpdateProgressed) else [ack_of(event, "discarded", LATE)]
        return [*current.take(event, now), *self._close_if_due(now)]

    def _on_aggregated(self, event: AggregationFinished, now: float) -> list[Effect]:
        if self.phase is not Phase.AGGREGATING or self._round is None or event.round_number != self._round.number:
            return []
        self.phase = Phase.EVALUATING
        self._round.aggregated_at = now
        self._round.next_global_digest = event.next_global_digest
        self._round.next_state_digest = event.next_state_digest
        self._round.diagnostics = event.diagnostics
        noting = self._round.note_contributions(event.contributions)
        return [*noting, Evaluate(round_number=event.round_number, global_digest=event.next_global_digest)]

    def _on_aggregation_refused(self, event: AggregationRefused, now: float) -> list[Effect]:
        current = self._round
        if self.phase not in {Phase.AGGREGATING, Phase.EVALUATING} or current is None or event.round_number != current.number:
            return []
        noting = current.note_contributions(event.contributions)
        note = Note(text=f"round={current.number} not aggregated, the global model stays: {event.detail}", warning=True)
        current.next_global_digest = self._position.global_digest
        return [*noting, note, *self._finish_round(current, aggregated=False, evaluation=None, now=now)]

    def _on_evaluated(self, event: EvaluationFinished, now: float) -> list[Effect]:
        if self.phase is not Phase.EVALUATING or self._round is None or event.round_number != self._round.number:
            return []
        current = self._round
        if current.setback is None:
            current.setback = setback_of(
                event.evaluation,
                best_accuracy=self._position.best_accuracy,
                num_classes=self._expectation.num_classes,
                settings=self._settings.protection,
            )
            if current.setback is not None:
                self.phase = Phase.AGGREGATING
                fall = f"accuracy={current.setback.accuracy:.4f} best={current.setback.best_accuracy:.4f}"
                return [Note(text=f"round={current.number} setback {fall}; looking for the node", warning=True), self._aggregation(current)]
        return self._finish_round(current, aggregated=True, evaluation=event.evaluation, now=now)

    def _on_time_passed(self, now: float) -> list[Effect]:
        if self.phase is Phase.STARTING and self._started_at is not None and now >= self._started_at + START_SECONDS:
            return self._leave_starting(now)
        effects = self._put_back() if self._check_at is not None and now >= self._check_at else []
        if self.phase is Phase.COLLECTING and self._round is not None:
            return [*effects, *self._round.ask_overdue(now), *self._close_if_due(now)]
        if self.phase is Phase.WAITING and self._attendance.ends_at is not None and now >= self._attendance.ends_at:
            # Whether or not a round can open: it would be due for ever.
            self._attendance.end_roll(now, self._roster.online())
            return [*effects, *(self._open_round_if_possible(now) or self._say())]
        return [*effects, *self._leave_if_due(now)]

    # --- rounds ---------------------------------------------------------------------------------

    def _leave_starting(self, now: float) -> list[Effect]:
        self.phase = Phase.WAITING
        # What was retained before may be a ghost's; every node answers the state of a new epoch.
        self._attendance.begin_roll(now)
        if self._position.finished:
            # Not before it is known what the broker has lost of the rounds: nobody else would put it back.
            self._stay_until = now + CHECK_SECONDS
            return [CheckRounds(), *self._end("the run had finished already", now, failed=False)]
        check: list[Effect] = [CheckRounds()] if self._is_resumed else []
        if (num_nodes := self._settings.rounds.min_nodes) < MIN_PRIVATE_NODES:
            text = f"rounds.min_nodes={num_nodes}: of fewer than {MIN_PRIVATE_NODES} nodes one can work out the other's update"
            check.append(Note(text=f"{text}, and no median tells a liar (docs/security.md)", warning=True))
        if self._position.cohort:
            return [*self._open_round(self._position.cohort, now), *check]
        return [*self._say(), *self._open_round_if_possible(now), *check]

    def _open_round_if_possible(self, now: float) -> list[Effect]:
        rounds = self._settings.rounds
        described = self._roster.described_as_fit()
        # Those who may be there are waited for, lest the cohort follow from who answers first.
        if self._is_paused or len(described) < rounds.min_nodes or not self._attendance.end_roll(now, described):
            return []
        fit = self.fit_nodes()
        if len(fit) < rounds.min_nodes:
            return []
        cohort = draw_cohort(
            fit,
            seed=self._settings.seed,
            round_number=self._position.round_number,
            participation=rounds.participation,
            min_nodes=rounds.min_nodes,
        )
        return self._open_round(cohort, now)

    def _open_round(self, cohort: tuple[str, ...], now: float) -> list[Effect]:
        # A round begun by an earlier process keeps its deadline, but gets half of it at least: its nodes may have
        # been away for as long as the aggregator was.
        deadline_seconds = self._settings.rounds.deadline_seconds
        elapsed_seconds = min(self._position.elapsed_seconds, 0.5 * deadline_seconds)
        self._position = replace(self._position, cohort=cohort, elapsed_seconds=elapsed_seconds)
        self._round = OpenRound(
            number=self._position.round_number,
            settings=self._settings.rounds,
            members={node: Member() for node in cohort},
            opened_at=now,
            deadline_at=now + deadline_seconds - elapsed_seconds,
            min_updates=self._expectation.min_updates,
        )
        self.phase = Phase.COLLECTING
        return [
            SaveCheckpoint(position=self._position),
            FollowRound(round_number=self._round.number),
            PublishRound(plan=self._plan(self._round)),
            *self._say(),
        ]

    def _close_if_due(self, now: float) -> list[Effect]:
        current = self._round
        if self.phase is not Phase.COLLECTING or current is None:
            return []
        if not current.is_due(now):
            return []
        effects = [*current.close(now), LeaveRound(round_number=current.number)]
        if len(current.accepted()) >= current.quorum:
            self.phase = Phase.AGGREGATING
            current.declared = {node: number for node, number in self._roster.declared().items() if node in current.members}
            return [*effects, self._aggregation(current)]
        effects.append(Note(text=f"round={current.number} below quorum: the global model stays", warning=True))
        current.next_global_digest = self._position.global_digest
        return [*effects, *self._finish_round(current, aggregated=False, evaluation=None, now=now)]

    def _aggregation(self, current: OpenRound) -> Aggregate:
        return Aggregate(
            round_number=current.number,
            nodes=tuple(current.accepted()),
            declared=current.declared,
            min_updates=current.least,
            num_nodes=fleet_size(len(current.members), self._settings.rounds),
            setback=current.setback,
        )

    def _finish_round(self, current: OpenRound, *, aggregated: bool, evaluation: Evaluation | None, now: float) -> list[Effect]:
        result = result_of(
            current, self._position, self._settings, self._expectation, aggregated=aggregated, evaluation=evaluation, now=now
        )
        if self._sign is not None:
            result = self._sign(result)
        missing = self._note_missing(current, aggregated=aggregated)
        self._round = None
        is_last = current.number >= self._settings.num_rounds
        self._position = replace(
            self._position,
            round_number=current.number + (0 if is_last else 1),
            cohort=(),
            global_digest=current.next_global_digest,
            previous_result_digest=hashlib.sha256(result.to_payload()).hexdigest(),
            failed_rounds=0 if aggregated else self._position.failed_rounds + 1,
            finished=is_last,
            state_digest=current.next_state_digest if aggregated else self._position.state_digest,
            counted=self._counted(current) if aggregated else self._position.counted,
            elapsed_seconds=0.0,
            best_accuracy=best_accuracy([result], self._position.best_accuracy),
        )
        effects: list[Effect] = [PublishResult(result=result), *missing]
        if self._position.failed_rounds >= self._settings.rounds.max_failed_rounds:
            reason = f"{self._position.failed_rounds} rounds in a row ended below quorum; check the nodes, then continue with --resume"
            return [*effects, SaveCheckpoint(position=self._position), *self._end(reason, now, failed=True)]
        if is_last:
            return [*effects, SaveCheckpoint(position=self._position), *self._end("all rounds done", now, failed=False)]
        self.phase = Phase.WAITING
        opening = self._open_round_if_possible(now)
        return [*effects, *(opening or [SaveCheckpoint(position=self._position), *self._say()])]

    def _counted(self, current: OpenRound) -> Mapping[str, str]:
        """Return each node's newest update that was aggregated, this round's included."""
        if not self._expectation.keeps_node_state:
            return {}
        return {**self._position.counted, **current.counted()}

    def _note_missing(self, current: OpenRound, *, aggregated: bool) -> list[Effect]:
        """Set those aside who have failed too often; those who answer the call will be tried again."""
        missed = current.failed()
        is_lost = not aggregated and len(current.members) - len(missed) >= self._settings.rounds.min_nodes
        aside = self._attendance.take_round(current.number, cohort=current.members, missed=missed, is_lost=is_lost)
        if not aside:
            return []
        self._roll_call += 1
        number = current.number + 1
        return [Note(text=f"round={current.number} node={node} {self._attendance.absence(node, number)}", warning=True) for node in aside]

    def _end(self, reason: str, now: float, *, failed: bool, ended: Literal["finished", "stopped"] | None = None) -> list[Effect]:
        """End the run; stay until the nodes have heard of it, lest a broker that fails now leave them waiting for ever."""
        self.phase = Phase.LEAVING
        self._round = None
        self._leave_at = now + LEAVE_SECONDS
        self._stop = Stop(reason=reason, failed=failed)
        self._ended = ended or ("stopped" if failed else "finished")
        return [*self._last_words(), *self._leave_if_due(now)]

    def _last_words(self) -> list[Effect]:
        """Publish how the run ended, and the model that came of it."""
        final = PublishFinal(round_number=self._position.round_number + 1, global_digest=self._position.global_digest)
        return [*([final] if self._ended == "finished" else []), *self._say(reason=self._stop.reason, ended=self._ended)]

    def _leave_if_due(self, now: float) -> list[Effect]:
        if self.phase is not Phase.LEAVING:
            return []
        self._attendance.end_roll(now, self._roster.online())
        if self._stay_until is not None and now < self._stay_until:
            return []
        self._stay_until = None
        if now < self._leave_at and self._roster.has_online:
            return []
        self.phase = Phase.ENDED
        return [self._stop]

    def _give_way(self, reason: str) -> list[Effect]:
        """Leave the run, and its state on the broker, to whoever leads it."""
        self.phase = Phase.ENDED
        return [Stop(reason=reason, failed=True, is_fenced=True)]

    def _say(self, *, reason: str = "", ended: Literal["finished", "stopped"] | None = None) -> list[Effect]:
        """Publish the run's state, and remember it: by it we know whether the broker has forgotten."""
        state = self._state(reason=reason, ended=ended)
        self._published = [*self._published[-7:], state]
        return [PublishState(state=state)]

    # --- messages -------------------------------------------------------------------

    def _state(self, *, reason: str = "", ended: Literal["finished", "stopped"] | None = None) -> RunState:
        is_waiting = self.phase is Phase.WAITING
        if not reason and is_waiting and self._is_paused:
            reason = f"paused: {self._pause_reason}"
        elif not reason and is_waiting:
            number = self._position.round_number
            counts = f"waiting for nodes: {len(self._roster.fit(number))} of at least {self._settings.rounds.min_nodes} are fit"
            reason = "; ".join([counts, *self._roster.sitting_out(number)])
        is_training = self.phase in {Phase.COLLECTING, Phase.AGGREGATING, Phase.EVALUATING}
        if not reason and is_training:
            reason = "; ".join(self._roster.sitting_out(self._position.round_number))
        phase = ended or ("training" if is_training else "paused" if self._is_paused else "waiting")
        return state_of(self._position, self._settings, phase=phase, instance=self._instance, roll_call=self._roll_call, reason=reason)

    def _plan(self, current: OpenRound) -> RoundPlan:
        return plan_of(current, self._position, self._settings, self._expectation)
