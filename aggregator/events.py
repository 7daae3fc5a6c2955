"""What the coordinator is told (events, past facts) and what it asks for (effects, commands)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from aggregator.protection import Contribution
from federation.errors import RejectReason
from federation.messages import Control, Evaluation, LocalMetrics, NodeStatus, RoundPlan, RoundResult, RunState, Setback

# --- events -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened:
    """The broker is connected; without `session_present` it has forgotten our subscriptions."""

    session_present: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSeen:
    """Somebody's run state is on the broker: ours, a predecessor's or a twin's."""

    state: RunState
    retained: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignMessage:
    """Somebody else with the aggregator's identity has just published a plan or result of this round: a zombie."""

    round_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckBegun:
    """All that was published has reached the broker, and its retained state of the run has been asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSeen:
    """The run's operator wants something."""

    control: Control


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReported:
    """A node's status arrived."""

    status: NodeStatus
    retained: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateProgressed:
    """Bytes of a node's update arrived."""

    round_number: int
    node: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateOffered:
    """A valid manifest arrived while chunks of it are still missing, or when the node's outcome stood already."""

    round_number: int
    node: str
    sha256: str
    is_reworded: bool = False
    """It is not, byte for byte, the manifest of the update that was accepted, and has taken its place on the broker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateCompleted:
    """A node's update is whole and valid, and stored."""

    round_number: int
    node: str
    sha256: str
    num_examples: int
    metrics: LocalMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRefused:
    """A node's update can't be used."""

    round_number: int
    node: str
    sha256: str | None
    reason: RejectReason
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationFinished:
    """The next global model is written and durable."""

    round_number: int
    next_global_digest: str
    diagnostics: dict[str, float]
    next_state_digest: str | None = None
    """Of the sets that stay on the server; None where the method has none."""
    contributions: tuple[Contribution, ...] = ()
    """What the protection made of each update, in node order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregationRefused:
    """No next global model came of the updates, or none that can be used: the round's own stays."""

    round_number: int
    detail: str
    contributions: tuple[Contribution, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationFinished:
    """The next global model has been evaluated on the test set."""

    round_number: int
    evaluation: Evaluation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkFailed:
    """Aggregation or evaluation raised: this run can't go on here."""

    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePassed:
    """`wake_at` has come."""


Event: TypeAlias = (
    SessionOpened
    | StateSeen
    | ForeignMessage
    | CheckBegun
    | ControlSeen
    | NodeReported
    | UpdateProgressed
    | UpdateOffered
    | UpdateCompleted
    | UpdateRefused
    | AggregationFinished
    | AggregationRefused
    | EvaluationFinished
    | WorkFailed
    | TimePassed
)

# --- effects ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowRun:
    """Subscribe to the run's state, node statuses and metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowRound:
    """Subscribe to a round's updates."""

    round_number: int
    is_again: bool = False
    """The round is open already: keep what has been collected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveRound:
    """Unsubscribe from a round's updates and forget its incomplete ones."""

    round_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishState:
    """Publish the run's state, retained."""

    state: RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishRound:
    """Publish a round's plan, then its global model's chunks and manifest, all retained."""

    plan: RoundPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRounds:
    """Compare the finished rounds that the broker holds with the archive, and publish again what it lost."""

    suspects: tuple[int, ...] = ()
    """Rounds that are published again in any case: the open one, when it is over, for it may have lost updates already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearControl:
    """Take the operator's wish off the broker: it has been heeded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishFinal:
    """Publish the final global model, retained, as that of the round after the last."""

    round_number: int
    global_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SendAck:
    """Tell a node what became of its update."""

    round_number: int
    node: str
    outcome: Literal["accepted", "rejected", "discarded"]
    sha256: str | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreUpdate:
    """Publish a node's accepted update again, over what the node has put in its place."""

    round_number: int
    node: str
    with_chunks: bool
    """False where only the manifest's words differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMissing:
    """Ask a node for the chunks that its offered update still lacks."""

    round_number: int
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """Aggregate the stored updates of these nodes, in this order, and report `AggregationFinished` or `AggregationRefused`."""

    round_number: int
    nodes: tuple[str, ...]
    declared: Mapping[str, int]
    """How many examples each node has, as far as its status said."""
    min_updates: int
    """So many must be left by the protection."""
    setback: Setback | None = None
    """What the model made of all updates shows: it is made again without those that are to blame."""
    num_nodes: int
    """About how many nodes the cohort was drawn from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """Evaluate a round's new global model and report `EvaluationFinished`."""

    round_number: int
    global_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishResult:
    """Publish a round's result, retained, and record it."""

    result: RoundResult


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveCheckpoint:
    """Store this, durably, before any later effect is performed."""

    position: Position


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Write one line to the log."""

    text: str
    warning: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The run is over for this process."""

    reason: str
    failed: bool
    is_fenced: bool = False
    """Another aggregator leads: nothing more may be written anywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a run stands: what a restarted aggregator continues from."""

    epoch: int
    round_number: int
    """The round that is open or opens next."""
    cohort: tuple[str, ...]
    """Of the open round; empty when it has not opened yet."""
    global_digest: str
    previous_result_digest: str | None = None
    failed_rounds: int = 0
    """Rounds below quorum in a row."""
    finished: bool = False
    state_digest: str | None = None
    """Of the sets that stay on the server; None where the method has none."""
    counted: Mapping[str, str] = field(default_factory=dict)
    """Node -> the digest of its newest update that was aggregated; empty where nothing is kept on nodes."""
    elapsed_seconds: float = 0.0
    """How long the open round has been open."""
    best_accuracy: float | None = None
    """Of the run's global models on the server's images; None before the first, or where there are none."""


Effect: TypeAlias = (
    FollowRun
    | FollowRound
    | LeaveRound
    | PublishState
    | PublishRound
    | CheckRounds
    | ClearControl
    | PublishFinal
    | SendAck
    | RestoreUpdate
    | RequestMissing
    | Aggregate
    | Evaluate
    | PublishResult
    | SaveCheckpoint
    | Note
    | Stop
)
