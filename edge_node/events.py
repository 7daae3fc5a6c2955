"""What the participant is told (events, past facts) and what it asks for (effects, commands)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from federation.messages import Ack, RoundPlan, RunState
from federation.settings import ModelSettings

# --- events -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened:
    """The broker is connected; without `session_present` it has forgotten our subscriptions."""

    session_present: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StateReceived:
    """The run's state arrived."""

    state: RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReceived:
    """A round's plan arrived."""

    plan: RoundPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalProgressed:
    """Bytes of a round's global model arrived."""

    round_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalCompleted:
    """A round's global model is whole, verified and stored."""

    round_number: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchFailed:
    """A round's global model can't be stored: the disk is full or fails."""

    round_number: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFailed:
    """What an event asked for could not be done: the disk is full, gone or read-only."""

    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EffectFailed:
    """What an event asked for could not be done, for another reason than the disk."""

    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFinished:
    """An update of this round, trained from the global model `base_digest`, is stored."""

    round_number: int
    base_digest: str
    is_old: bool = False
    """Stored by an earlier process: the aggregator may have parts of it already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFailed:
    """Training raised; the node sits this round out."""

    round_number: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateLost:
    """The stored update of this round is not what was trained: it is gone, or the disk has damaged it."""

    round_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """A global model has been turned into this device's own, or could not be."""

    round_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AckReceived:
    """The aggregator spoke of our update."""

    ack: Ack


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePassed:
    """`wake_at` has come."""


Event: TypeAlias = (
    SessionOpened
    | StateReceived
    | PlanReceived
    | GlobalProgressed
    | GlobalCompleted
    | FetchFailed
    | DiskFailed
    | EffectFailed
    | TrainingFinished
    | TrainingFailed
    | UpdateLost
    | Deployed
    | AckReceived
    | TimePassed
)

# --- effects ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowRun:
    """Subscribe to the run's state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowRound:
    """Subscribe to a round's plan, global model and our acks; an update already stored for it is kept."""

    round_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaveRound:
    """Unsubscribe from a round, stop its training, forget what it stored."""

    round_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishStatus:
    """Publish what this node is, retained."""

    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchMissing:
    """Ask the broker again for what the round's global model still lacks; for all of it, where the stored one is not the plan's."""

    round_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """Train an update and report `TrainingFinished`; a stored one of the same base is reported at once."""

    plan: RoundPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """Publish these chunks of the stored update (None: all), then its manifest."""

    round_number: int
    missing: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deploy:
    """Make this round's global model the device's own, measure it, and report `Deployed`."""

    round_number: int
    model: ModelSettings
    global_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Publish the stored update's manifest again, so that the aggregator says what it lacks."""

    round_number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Write one line to the log."""

    text: str
    warning: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """The run is over."""

    reason: str


Effect: TypeAlias = FollowRun | FollowRound | LeaveRound | PublishStatus | FetchMissing | Train | Upload | Deploy | Offer | Note | Stop
