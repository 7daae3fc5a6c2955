"""The open round: which updates are in, who is asked again, when the round closes, and what its result says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, assert_never

from aggregator.events import (
    Effect,
    Note,
    RequestMissing,
    RestoreUpdate,
    SendAck,
    UpdateCompleted,
    UpdateOffered,
    UpdateProgressed,
    UpdateRefused,
)
from aggregator.protection import Contribution
from federation.errors import RejectReason
from federation.messages import NodeOutcome, Setback
from federation.settings import RoundSettings

SETTLE_SECONDS = 1.0
"""An offered update is asked for its missing chunks when nothing of it has come for so long: retained
messages arrive in no particular order, so a manifest may well overtake its chunks."""

MAX_REQUESTS = 10
"""An update is rejected as corrupt after its missing chunks were asked for so many times in vain."""

MAX_RESTORED = 3
"""How often an accepted update is published again in a round: a node must not make the aggregator send it for ever."""

LATE = "late"
DUPLICATE = "duplicate"

UpdateEvent: TypeAlias = UpdateProgressed | UpdateOffered | UpdateCompleted | UpdateRefused


@dataclass(slots=True, kw_only=True)
class Member:
    """One cohort member in the open round."""

    outcome: NodeOutcome | None = None
    ask_at: float | None = None
    num_requests: int = 0
    num_restored: int = 0
    is_straggler: bool = False


@dataclass(slots=True, kw_only=True)
class OpenRound:
    """The bookkeeping of one round, from its opening to its result. Times are on the coordinator's clock."""

    number: int
    settings: RoundSettings
    members: dict[str, Member]
    opened_at: float
    deadline_at: float
    min_updates: int = 1
    """Of how many updates the method is what it promises."""
    grace_at: float | None = None
    closed_at: float = 0.0
    aggregated_at: float = 0.0
    next_global_digest: str = ""
    next_state_digest: str | None = None
    bytes_up: int = 0
    num_duplicates: int = 0
    diagnostics: dict[str, float] = field(default_factory=dict)
    declared: Mapping[str, int] = field(default_factory=dict)
    """How many examples each member said it had, when the round closed."""
    setback: Setback | None = None
    """What the first model made of its updates showed, if it was far worse than the run's best."""

    @property
    def quorum(self) -> int:
        """How many accepted updates are needed.

        A rejected node has answered, and does not count among those that are waited for: one node must not be able to stop the
        others. But a round never counts on fewer nodes than the run may begin one with, where its quorum asks for as many.
        """
        num_rejected = sum(member.outcome is not None and member.outcome.outcome == "rejected" for member in self.members.values())
        return max(self.least, self.settings.quorum_of(len(self.members) - num_rejected))

    @property
    def least(self) -> int:
        """With fewer updates nothing is aggregated, whoever was rejected or left out."""
        return max(self.min_updates, min(self.settings.min_nodes, self.settings.quorum_of(len(self.members))))

    @property
    def wake_at(self) -> float:
        """When the round next has something to do without being told."""
        times = [self.deadline_at, self.grace_at, *(member.ask_at for member in self.members.values())]
        return min(time for time in times if time is not None)

    def expects(self, node: str) -> bool:
        """Return whether bytes of this node's update are still worth storing."""
        member = self.members.get(node)
        return member is not None and member.outcome is None

    def accepted(self) -> list[str]:
        """Return the nodes whose updates are accepted, in node-id order."""
        return sorted(node for node, member in self.members.items() if member.outcome and member.outcome.outcome == "accepted")

    def outcomes(self) -> list[NodeOutcome]:
        """Return the outcomes so far, in node-id order."""
        return [member.outcome for _, member in sorted(self.members.items()) if member.outcome is not None]

    def take(self, event: UpdateEvent, now: float) -> list[Effect]:
        """Take in what became known of a node's update; return what to do."""
        member = self.members.get(event.node)
        if isinstance(event, UpdateProgressed):
            self.bytes_up += event.num_bytes
        if member is None:
            return [] if isinstance(event, UpdateProgressed) else [ack_of(event, "discarded", "not in this round's cohort")]
        if member.outcome is not None:
            return self._answer_again(event, member.outcome)
        match event:
            case UpdateProgressed():
                if member.ask_at is not None:
                    member.ask_at = now + SETTLE_SECONDS
                return []
            case UpdateOffered():
                member.ask_at = now + SETTLE_SECONDS
                return []
            case UpdateCompleted():
                accepted = NodeOutcome(
                    node=event.node,
                    outcome="accepted",
                    num_examples=event.num_examples,
                    update_digest=event.sha256,
                    metrics=event.metrics,
                )
                return self._settle(member, accepted, now)
            case UpdateRefused():
                reason = f"{event.reason}: {event.detail}"[:500]
                return self._settle(
                    member, NodeOutcome(node=event.node, outcome="rejected", reason=reason, update_digest=event.sha256), now
                )
        assert_never(event)

    def ask_overdue(self, now: float) -> list[Effect]:
        """Ask the nodes that have gone quiet for what their offered updates lack; give up on them in the end."""
        effects: list[Effect] = []
        for node, member in sorted(self.members.items()):
            if member.ask_at is None or now < member.ask_at:
                continue
            if member.num_requests >= MAX_REQUESTS:
                reason = f"{RejectReason.CORRUPT}: chunks still missing after {MAX_REQUESTS} requests"
                effects += self._settle(member, NodeOutcome(node=node, outcome="rejected", reason=reason), now)
                continue
            member.num_requests += 1
            # Each further request waits longer: a slow link needs time, not more traffic.
            member.ask_at = now + SETTLE_SECONDS * 2**member.num_requests
            effects.append(RequestMissing(round_number=self.number, node=node))
        return effects

    def is_due(self, now: float) -> bool:
        """Return whether the round closes now."""
        is_complete = all(member.outcome for member in self.members.values())
        return is_complete or now >= self.deadline_at or (self.grace_at is not None and now >= self.grace_at)

    def close(self, now: float) -> list[Effect]:
        """Discard those who have not answered; from now on outcomes stand."""
        effects: list[Effect] = []
        for node, member in sorted(self.members.items()):
            if member.outcome is None:
                member.is_straggler = True
                effects += self._settle(member, NodeOutcome(node=node, outcome="discarded", reason=LATE), now)
        self.closed_at = self.aggregated_at = now
        return effects

    def note_contributions(self, contributions: Sequence[Contribution]) -> list[Effect]:
        """Write down what the protection made of each update; return what to log of it."""
        effects: list[Effect] = []
        for contribution in contributions:
            member = self.members[contribution.node]
            if member.outcome is None:
                continue
            before = member.outcome.protection
            member.outcome = member.outcome.model_copy(
                update={
                    "declared_examples": self.declared.get(contribution.node),
                    "weight": contribution.weight,
                    "distance": contribution.distance,
                    "protection": contribution.reason[:500],
                }
            )
            if contribution.reason and contribution.reason[:500] != before:
                effects.append(Note(text=f"round={self.number} node={contribution.node} {contribution.reason}", warning=True))
        return effects

    def counted(self) -> dict[str, str]:
        """Return the digest of each member's update that was aggregated."""
        return counted_updates(self.outcomes())

    def failed(self) -> list[str]:
        """Return the members of whom nothing was aggregated, in node-id order: silent, rejected, or left out by the protection."""
        return sorted(
            node
            for node, member in self.members.items()
            if member.outcome is None or member.outcome.outcome != "accepted" or member.outcome.weight == 0
        )

    def phase_seconds(self, now: float) -> dict[str, float]:
        """Return how long each part of the round took, its result being published now."""
        phases = {
            "collect": self.closed_at - self.opened_at,
            "aggregate": self.aggregated_at - self.closed_at,
            "evaluate": now - self.aggregated_at,
        }
        measured = [outcome.metrics for outcome in self.outcomes() if outcome.metrics]
        if measured:
            # The slowest node is what the round waited for.
            slowest = max(measured, key=lambda metrics: metrics.download_seconds + metrics.train_seconds)
            phases["download"] = slowest.download_seconds
            phases["train"] = slowest.train_seconds
        return phases

    def _settle(self, member: Member, outcome: NodeOutcome, now: float) -> list[Effect]:
        """Give a member its one outcome."""
        member.outcome = outcome
        member.ask_at = None
        if self.grace_at is None and len(self.accepted()) >= self.quorum:
            self.grace_at = now + self.settings.grace_seconds
        ack = SendAck(
            round_number=self.number,
            node=outcome.node,
            outcome=outcome.outcome,
            sha256=outcome.update_digest,
            reason=outcome.reason,
        )
        if outcome.outcome == "accepted":
            return [ack]
        return [ack, Note(text=f"round={self.number} node={outcome.node} {outcome.outcome} reason={outcome.reason!r}", warning=True)]

    def _answer_again(self, event: UpdateEvent, outcome: NodeOutcome) -> list[Effect]:
        """Answer a node whose outcome stands: the same again, or `duplicate` for another update."""
        if isinstance(event, UpdateProgressed):
            return []
        is_another = event.sha256 != outcome.update_digest
        restoring: list[Effect] = []
        member = self.members[event.node]
        if isinstance(event, UpdateOffered) and event.is_reworded and member.num_restored < MAX_RESTORED:
            # A twin, or a node that lost its disk and trained again: what the broker holds must stay what the result vouches for.
            member.num_restored += 1
            restoring.append(RestoreUpdate(round_number=self.number, node=event.node, with_chunks=is_another))
        if is_another:
            self.num_duplicates += 1
            return [*restoring, ack_of(event, "discarded", DUPLICATE)]
        return [*restoring, ack_of(event, outcome.outcome, outcome.reason)]


def counted_updates(outcomes: Sequence[NodeOutcome]) -> dict[str, str]:
    """Return node -> digest of the updates that went into a round's aggregation: accepted, and not left out by the protection."""
    return {
        outcome.node: outcome.update_digest
        for outcome in outcomes
        if outcome.outcome == "accepted" and outcome.weight != 0 and outcome.update_digest is not None
    }


def ack_of(
    event: UpdateOffered | UpdateCompleted | UpdateRefused, outcome: Literal["accepted", "rejected", "discarded"], reason: str
) -> SendAck:
    """Return the answer to what became known of an update."""
    return SendAck(round_number=event.round_number, node=event.node, outcome=outcome, sha256=event.sha256, reason=reason)
