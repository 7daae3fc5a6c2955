"""The messages of the protocol: typed, versioned, unknown fields refused.

A message is an object here and a JSON payload on the wire. `parse` is the only way in: it is bounded,
and every fault is one `MessageError`.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, StringConstraints, ValidationError

from federation.errors import MessageError, RejectReason
from federation.plain_text import printable
from federation.settings import ClassNames, ModelSettings, Name, ProtectionSettings, RunSettings, TrainingSettings, parse_settings

MAX_MESSAGE_BYTES = 2 << 20
"""Largest JSON payload read: a manifest of 16,384 chunks, or a result of a few thousand nodes."""

MAX_PARAMS_BYTES = 8 << 30
"""Largest tensor set accepted anywhere, before any comparison with the model."""

MAX_CHUNKS = 16_384
"""Most chunks of one transfer: 4 GiB at the default chunk size, and a manifest of about 1 MiB."""

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256, lower-case hexadecimal."""

Signature = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{128})?$")]
"""Ed25519, lower-case hexadecimal; empty where this site does not sign."""

Text = Annotated[str, StringConstraints(max_length=500), AfterValidator(printable)]
"""A sentence, for logs, tables and pages: without line breaks and terminal controls, whoever wrote it."""
Count = Annotated[int, Field(ge=0, le=2**53)]
RoundNumber = Annotated[int, Field(ge=1, le=10**9)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Tag = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


ChoiceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_.:@-]{0,127}$")]
"""A method's or codec's name; `package.module:Name` of one's own."""

UNDERSTOOD: frozenset[str] = frozenset()
"""What a plan or state may list in `must_understand`: features after version 2 that this code knows."""


class Message(BaseModel):
    """Base of every message."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    version: Literal[2] = 2

    def to_payload(self) -> bytes:
        """Return the message as JSON bytes."""
        return self.model_dump_json().encode()


class Evaluation(BaseModel):
    """How good a model is on one set of images. Accuracies and F1 are shares in [0, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    num_examples: Count
    accuracy: Number
    f1_macro: Number
    f1_weighted: Number
    loss: Number
    """Mean cross-entropy in nats."""
    auc: Annotated[float, Field(ge=0, le=1)] | None = None
    """Macro area under the ROC curve, each class against the rest; None where no class has examples and others beside it,
    and of results older than this field."""
    class_accuracy: Annotated[list[Number], Field(max_length=10_000)]
    """Recall of each class; 0 where the set holds no example of it."""
    confusion_matrix: Annotated[list[list[Count]], Field(max_length=1000)]
    """Rows are true classes, columns predicted ones."""


RunPhase: TypeAlias = Literal["waiting", "training", "paused", "finished", "stopped"]


class RunState(Message):
    """Where a run is; the first thing a joining node reads."""

    model_config = ConfigDict(extra="ignore")

    run: Name
    phase: RunPhase
    round_number: Count
    """The round being trained, or the last one when the run has ended; 0 before the first."""
    num_rounds: RoundNumber
    epoch: Count
    """Fencing epoch: each start of an aggregator takes the next; a lower one is a zombie's."""
    instance: Tag = "-"
    """Random per process: of two aggregators with one epoch, the greater leads."""
    roll_call: Count = 0
    """Whenever epoch or this number changes, every node publishes its status anew: by that the aggregator knows it lives."""
    method: ChoiceName
    model: ModelSettings
    final_digest: Digest | None = None
    """`finished` only: of the final global model, published as that of round `round_number` + 1."""
    reason: Text = ""
    """Why the run waits or stopped, as a sentence."""
    result_digest: Digest | None = None
    """SHA-256 of the newest result's payload: the end of the hash chain. None before the first round's end."""
    settings: dict[str, JsonValue] | None = None
    """The whole run file, from which `fedmq recover` and `fedmq replay` know what is trained; nodes need not understand it."""
    must_understand: list[Tag] = []
    """Features without which this message is misread; unknown fields are ignored otherwise."""

    def run_settings(self) -> RunSettings | None:
        """Return the run file, checked; None where the state holds none.

        Raises:
            SettingsError: it is of another version, or names a method that is not installed here.
        """
        return parse_settings(self.settings, source="the run's state") if self.settings is not None else None


class AggregatorStatus(Message):
    """Whether a process leads the run: said as it connects and every 20 s, and taken back by its goodbye or its will."""

    run: Name
    online: bool
    instance: Tag
    """Random per process: tells a successor's word from a twin's last one."""


class NodeStatus(Message):
    """What a node is; published by itself when it joins and by its will when it vanishes."""

    node: Name
    online: bool
    instance: Tag
    """Random per process: tells a restart, or a twin with the same identity, apart."""
    num_examples: Count = 0
    image_shape: Annotated[list[Count], Field(max_length=3)] = []
    """Channels, height, width; empty while the node has no usable data."""
    num_classes: Count = 0
    class_names: ClassNames = []
    """In the order of the labels; empty where the data do not name them."""
    num_cores: Count = 0
    memory_bytes: Count = 0
    software: Annotated[dict[Tag, Tag], Field(max_length=20)] = {}
    capabilities: Annotated[list[ChoiceName], Field(max_length=500)] = []
    """Names of the methods and codecs that this node can obey."""
    problem: Text = ""
    """Why the node sits rounds out, as a sentence; empty when it is fit."""


class Choice(BaseModel):
    """A method or codec, and its settings; checked by whoever is to obey it, for another node may know others."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: ChoiceName
    settings: dict[str, JsonValue] = {}
    source_sha256: Digest | None = None
    """Of the source of a method or codec of one's own; None of FedMQ's."""


class RoundPlan(Message):
    """What one round asks of its cohort."""

    model_config = ConfigDict(extra="ignore")

    run: Name
    round_number: RoundNumber
    epoch: Count
    cohort: Annotated[list[Name], Field(max_length=10_000)]
    deadline_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Counted from receipt: nodes' clocks need not agree."""
    seed: Count
    """The run's seed; a node derives its own generators from (seed, round, node)."""
    model: ModelSettings
    training: TrainingSettings
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """This round's, after the schedule."""
    method: Choice
    """How nodes train, and how their updates will be aggregated: what replay repeats."""
    codec: Choice
    """How updates travel."""
    num_nodes: Annotated[int, Field(ge=1, le=10**9)]
    """About how many nodes the cohort was drawn from."""
    counted: Annotated[dict[Name, Digest], Field(max_length=10_000)] = {}
    """Cohort member -> the digest of its newest update that was aggregated: by that a node decides on what its method keeps there.
    Empty where neither method nor codec keeps anything."""
    protection: ProtectionSettings | None = None
    """What bounds them before; None in records from before there was a protection."""
    state_digest: Digest | None = None
    """Of the sets that stay on the server, published beside those that nodes are sent; None where the method has none."""
    global_digest: Digest
    global_bytes: Annotated[int, Field(ge=1, le=MAX_PARAMS_BYTES)]
    must_understand: list[Tag] = []
    """Features without which this message is misread; unknown fields are ignored otherwise."""


class Control(Message):
    """What the run's operator wants; retained until the aggregator has heeded it."""

    run: Name
    wanted: Literal["pause", "resume", "stop"]
    reason: Text = ""
    """Shown to whoever looks at the run's state."""


class RejectedMessages(BaseModel):
    """What one node has sent in vain, for one reason, since the aggregator's start."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    node: Text
    """`-` where the topic names none."""
    reason: Tag
    count: Count
    topic: Text
    """Of the newest."""
    detail: Text
    """Likewise."""


class RejectionReport(Message):
    """What an aggregator could not use, of whatever topic: for operators."""

    run: Name
    entries: Annotated[list[RejectedMessages], Field(max_length=1000)]
    """By node and reason, the newest last."""


class Transfer(Message):
    """A manifest: the commit mark of one chunked tensor set, published after its chunks."""

    run: Name
    round_number: RoundNumber
    total_bytes: Annotated[int, Field(ge=1, le=MAX_PARAMS_BYTES)]
    chunk_bytes: Annotated[int, Field(ge=1024, le=64 << 20)]
    """Tensor bytes in each chunk but the last, without the chunk's header."""
    sha256: Digest
    """Of the whole payload: the digest of the tensor set."""
    chunk_sha256: Annotated[list[Digest], Field(min_length=1, max_length=MAX_CHUNKS)]
    """Of each chunk's tensor bytes, in index order."""


class GlobalManifest(Transfer):
    """Manifest of the sets that nodes are sent, or of those that stay on the server, at the start of a round."""


class LocalMetrics(BaseModel):
    """What a node measured while it trained one update."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    loss: Number
    """Mean training loss of the last local epoch, in nats."""
    download_seconds: Number
    """From the plan's receipt until the global model was whole."""
    train_seconds: Number
    samples_per_second: Number
    validation_accuracy: Number | None = None
    """Of the received global model on the node's validation share; None without one."""
    validation_loss: Number | None = None
    validation_class_accuracy: Annotated[list[Number], Field(max_length=1000)] = []


class UpdateManifest(Transfer):
    """Manifest of one node's update."""

    node: Name
    base_digest: Digest
    """Of the global model the update was trained from."""
    num_examples: Annotated[int, Field(ge=1, le=10**12)]
    metrics: LocalMetrics
    signature: Signature = ""
    """The node's, over all other fields (federation/signing.py)."""


class Ack(Message):
    """What the aggregator says of a node's update; only this ends the node's upload."""

    run: Name
    round_number: RoundNumber
    epoch: Count
    node: Name
    outcome: Literal["accepted", "rejected", "discarded", "incomplete"]
    sha256: Digest | None = None
    """The transfer spoken of; None when the aggregator has seen none."""
    reason: Text = ""
    missing: Annotated[list[Count], Field(max_length=MAX_CHUNKS)] = []
    """`incomplete` only: chunk indices to send again."""


class NodeOutcome(BaseModel):
    """How one cohort member's round ended."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    node: Name
    outcome: Literal["accepted", "rejected", "discarded"]
    reason: Text = ""
    num_examples: Count = 0
    """As the update claims."""
    declared_examples: Count | None = None
    """As its node's status said when the round closed; None where none was known."""
    weight: Count | None = None
    """Examples it was aggregated with; 0: the protection left it out. None where nothing was aggregated."""
    distance: Number | None = None
    """Euclidean, of the update from the round's global model."""
    protection: Text = ""
    """Why it counts for less than it claims, as a sentence."""
    update_digest: Digest | None = None
    metrics: LocalMetrics | None = None


class Setback(BaseModel):
    """A round's first model was far worse on the server's images than the best of the run. Accuracies are shares in [0, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    accuracy: Number
    """Of the model made of all updates that passed the protection's bounds."""
    best_accuracy: Number
    """Of the run's models before."""
    least_accuracy: Number
    """That the round's model had to have."""


class RoundResult(Message):
    """What became of one round; each names the previous one's digest, which makes the rounds a hash chain."""

    run: Name
    round_number: RoundNumber
    epoch: Count
    previous_result_digest: Digest | None
    """SHA-256 of the previous round's result payload; None in the first round."""
    plan_digest: Digest | None = None
    """SHA-256 of the round's plan payload: what was asked is part of the chain."""
    method: ChoiceName
    aggregated: bool
    """False when the round ended below quorum: the next global model is this one."""
    global_digest: Digest
    next_global_digest: Digest
    outcomes: Annotated[list[NodeOutcome], Field(max_length=10_000)]
    evaluation: Evaluation | None
    """Of the next global model on the test set."""
    setback: Setback | None = None
    """Why updates within the protection's bounds were left out, or the model stayed as it was; None where it did not come to that."""
    accepted: Count
    rejected: Count
    discarded: Count
    stragglers: Count
    """Cohort members of whom no complete update had come when the round closed."""
    seconds: Number
    """From the round's opening to its result."""
    ended_ns: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """When the round ended, nanoseconds since 1970 by the aggregator's clock: the time of its points. 0: older than this field."""
    phase_seconds: dict[Tag, Number]
    bytes_up: Count
    bytes_down: Count
    diagnostics: dict[Tag, Number] = {}
    signature: Signature = ""
    """The aggregator's, over all other fields."""


class MetricPoint(BaseModel):
    """One measured point; the aggregator adds run and node from the sender's identity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    measurement: Literal["train", "inference", "device"]
    time_ns: Annotated[int, Field(ge=0, le=2**63 - 1)]
    """Nanoseconds since 1970, by the node's clock."""
    tags: Annotated[dict[Tag, Tag], Field(max_length=4)] = {}
    fields: Annotated[dict[Tag, Number | int | bool], Field(min_length=1, max_length=64)]


class MetricsReport(Message):
    """Figures a node sends beside the ring."""

    node: Name
    round_number: Count = 0
    points: Annotated[list[MetricPoint], Field(max_length=1000)]


M = TypeVar("M", bound=Message)


def parse(message_type: type[M], payload: bytes) -> M:
    """Return the message of a payload.

    Raises:
        MessageError: too large, no JSON, another version, unknown or missing fields, or values out of bounds.
    """
    if len(payload) > MAX_MESSAGE_BYTES:
        raise MessageError(f"{message_type.__name__} of {len(payload)} bytes", reason=RejectReason.OVERSIZED)
    try:
        message = message_type.model_validate_json(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "payload"
        reason = RejectReason.UNSUPPORTED_VERSION if place == "version" else RejectReason.INVALID_MESSAGE
        raise MessageError(f"{message_type.__name__}: {place}: {first['msg']}"[:400], reason=reason) from None
    if unknown := sorted(set(getattr(message, "must_understand", ())) - UNDERSTOOD):
        detail = f"{message_type.__name__} needs {', '.join(unknown)[:200]}, which this version does not know: update this installation"
        raise MessageError(detail, reason=RejectReason.UNSUPPORTED_VERSION)
    return message


def canonical_json(value: object) -> bytes:
    """Return JSON with sorted names and no spaces, for digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
