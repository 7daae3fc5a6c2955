"""What the coordinator says of the run and its rounds, as messages. Pure: facts in, messages out."""

from __future__ import annotations

import hashlib
from math import ceil

from aggregator.cohort import Expectation
from aggregator.events import Position
from aggregator.open_round import OpenRound
from federation.learning.algorithms import Algorithm
from federation.learning.codecs import Codec
from federation.learning.own_code import is_own, source_digest
from federation.learning.schedules import learning_rate
from federation.messages import Choice, Evaluation, RoundPlan, RoundResult, RunPhase, RunState
from federation.settings import RoundSettings, RunSettings


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
        method=settings.method.name,
        model=settings.model,
        final_digest=position.global_digest if phase == "finished" else None,
        reason=reason[:500],
        result_digest=position.previous_result_digest,
        settings=settings.model_dump(mode="json"),
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
        method=choice_of(settings.method),
        codec=choice_of(settings.codec),
        num_nodes=fleet_size(len(current.members), settings.rounds),
        counted={node: position.counted[node] for node in sorted(current.members) if node in position.counted},
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
        method=settings.method.name,
        aggregated=aggregated,
        global_digest=position.global_digest,
        next_global_digest=current.next_global_digest,
        outcomes=outcomes,
        evaluation=evaluation,
        setback=current.setback,
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


def fleet_size(cohort_size: int, rounds: RoundSettings) -> int:
    """Return about how many nodes a cohort was drawn from: what is in the record, for the nodes that came and went are not."""
    return ceil(cohort_size / rounds.participation)


def choice_of(settings: Algorithm.Settings | Codec.Settings) -> Choice:
    """Return a method or codec as a plan names it, every setting spelt out: defaults may differ between versions."""
    source = source_digest(settings.name) if is_own(settings.name) else None
    return Choice(name=settings.name, settings=settings.model_dump(mode="json", exclude={"name"}), source_sha256=source)
