"""What the coordinator says of the run and its rounds, as messages. Pure: facts in, messages out."""

from __future__ import annotations

import hashlib

from aggregator.cohort import Expectation
from aggregator.events import Position
from aggregator.open_round import OpenRound
from federation.learning.schedules import learning_rate
from federation.messages import Evaluation, RoundPlan, RoundResult, RunPhase, RunState
from federation.settings import RunSettings


def state_of(position: Position, settings: RunSettings, *, phase: RunPhase, instance: str, roll_call: int, reason: str) -> RunState:
    """Return where a run stands: in round `position.round_number`, or between that and the one before it."""
    is_in_round = phase not in {"waiting", "paused"}
    return RunState(
        run=settings.run,
        phase=phase,
        round_number=position.round_number - (0 if is_in_round else 1),
        num_rounds=settings.num_rounds,
        epoch=position.epoch,
        instance=instance,
        roll_call=roll_call,
        strategy=settings.strategy.name,
        model=settings.model,
        final_digest=position.global_digest if phase == "finished" else None,
        reason=reason[:500],
        result_digest=position.previous_result_digest,
        settings=settings,
    )


def plan_of(current: OpenRound, position: Position, settings: RunSettings, expectation: Expectation) -> RoundPlan:
    """Return what a round asks of its cohort."""
    return RoundPlan(
        run=settings.run,
        round_number=current.number,
        epoch=position.epoch,
        cohort=sorted(current.members),
        deadline_seconds=settings.rounds.deadline_seconds,
        seed=settings.seed,
        model=settings.model,
        training=settings.training,
        learning_rate=learning_rate(settings.training, current.number, settings.num_rounds),
        proximal_mu=expectation.proximal_mu,
        strategy=settings.strategy,
        protection=settings.protection,
        state_digest=position.state_digest,
        global_digest=position.global_digest,
        global_bytes=expectation.global_bytes,
    )


def result_of(
    current: OpenRound,
    position: Position,
    settings: RunSettings,
    expectation: Expectation,
    *,
    aggregated: bool,
    evaluation: Evaluation | None,
    now: float,
) -> RoundResult:
    """Return what became of a round, published `now`."""
    outcomes = current.outcomes()
    counts = {name: sum(outcome.outcome == name for outcome in outcomes) for name in ("accepted", "rejected", "discarded")}
    plan = plan_of(current, position, settings, expectation)
    return RoundResult(
        run=settings.run,
        round_number=current.number,
        epoch=position.epoch,
        previous_result_digest=position.previous_result_digest,
        plan_digest=hashlib.sha256(plan.to_payload()).hexdigest(),
        strategy=settings.strategy.name,
        aggregated=aggregated,
        global_digest=position.global_digest,
        next_global_digest=current.next_global_digest,
        outcomes=outcomes,
        evaluation=evaluation,
        accepted=counts["accepted"],
        rejected=counts["rejected"],
        discarded=counts["discarded"] + current.num_duplicates,
        stragglers=sum(member.is_straggler for member in current.members.values()),
        seconds=now - current.opened_at,
        phase_seconds=current.phase_seconds(now),
        bytes_up=current.bytes_up,
        bytes_down=expectation.global_bytes * len(current.members),
        diagnostics=current.diagnostics,
    )
