"""Builds and parses every topic of the protocol: one module, so that no other spells a topic out.

All topics lie under `fedmq/v2/{run}`; one level per field, so that a broker's access list can confine a
node by its name. docs/protocol.md draws the tree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from federation.errors import RejectReason, TopicError

ROOT = "fedmq"
VERSION = "v2"
PREFIX = f"{ROOT}/{VERSION}"

MAX_TOPIC_CHARACTERS = 300
"""Longest topic that can occur: two 63-character names, two numbers and the fixed levels, with room to spare."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")


@dataclass(frozen=True, slots=True)
class StateTopic:
    """`state`: the run's configuration, phase and round. Retained, by the aggregator."""

    run: str

    def __str__(self) -> str:
        return f"{PREFIX}/{self.run}/state"


@dataclass(frozen=True, slots=True)
class StatusTopic:
    """`nodes/{node}/status`: online or offline, and what the node is. Retained, by that node and its will."""

    run: str
    node: str

    def __str__(self) -> str:
        return f"{PREFIX}/{self.run}/nodes/{self.node}/status"


@dataclass(frozen=True, slots=True)
class ControlTopic:
    """`control`: what the operator wants of the run. Retained, with the aggregator's identity."""

    run: str

    def __str__(self) -> str:
        return f"{PREFIX}/{self.run}/control"


@dataclass(frozen=True, slots=True)
class AggregatorTopic:
    """`aggregator`: whether a process leads the run now. Retained, by the aggregator and its will."""

    run: str

    def __str__(self) -> str:
        return f"{PREFIX}/{self.run}/aggregator"


@dataclass(frozen=True, slots=True)
class RejectionsTopic:
    """`rejections`: what the aggregator could not use, by node and reason. Retained, by the aggregator; nodes can't read it."""

    run: str

    def __str__(self) -> str:
        return f"{PREFIX}/{self.run}/rejections"


@dataclass(frozen=True, slots=True)
class PlanTopic:
    """`rounds/{r}/plan`: cohort and hyper-parameters of a round. Retained, by the aggregator."""

    run: str
    round_number: int

    def __str__(self) -> str:
        return f"{PREFIX}/{self.run}/rounds/{self.round_number}/plan"


@dataclass(frozen=True, slots=True)
class GlobalManifestTopic:
    """`rounds/{r}/global/manifest`: commit mark of the global model at the start of a round. Retained."""

    run: str
    round_number: int

    def __str__(self) -> str:
        return f"{PREFIX}/{self.run}/rounds/{self.round_number}/global/manifest"


@dataclass(frozen=True, slots=True)
class GlobalChunkTopic:
    """`rounds/{r}/global/chunks/{i}`: one chunk of the global model, counted from 0. Retained."""

    run: str
    round_number: int
    index: int

    def __str__(self) -> str:
        return f"{PREFIX}/{self.run}/rounds/{self.round_number}/global/chunks/{self.index}"


@dataclass(frozen=True, slots=True)
class StrategyManifestTopic:
    """`rounds/{r}/strategy/manifest`: commit mark of the strategy's state at the start of a round. Retained."""

    run: str
    round_number: int

    def __str__(self) -> str:
        return f"{PREFIX}/{self.run}/rounds/{self.round_number}/strategy/manifest"


@dataclass(frozen=True, slots=True)
class StrategyChunkTopic:
    """`rounds/{r}/strategy/chunks/{i}`: one chunk of the strategy's state, counted from 0. Retained."""

    run: str
    round_number: int
    index: int

    def __str__(self) -> str:
        return f"{PREFIX}/{self.run}/rounds/{self.round_number}/strategy/chunks/{self.index}"


@dataclass(frozen=True, slots=True)
class UpdateManifestTopic:
    """`rounds/{r}/updates/{node}/manifest`: commit mark of a node's update. Retained, by that node."""

    run: str
    round_number: int
    node: str

    def __str__(self) -> str:
        return f"{PREFIX}/{self.run}/rounds/{self.round_number}/updates/{self.node}/manifest"


@dataclass(frozen=True, slots=True)
class UpdateChunkTopic:
    """`rounds/{r}/updates/{node}/chunks/{i}`: one chunk of a node's update, counted from 0. Retained."""

    run: str
    round_number: int
    node: str
    index: int

    def __str__(self) -> str:
        return f"{PREFIX}/{self.run}/rounds/{self.round_number}/updates/{self.node}/chunks/{self.index}"


@dataclass(frozen=True, slots=True)
class AckTopic:
    """`rounds/{r}/acks/{node}`: what became of that node's update. Not retained, by the aggregator."""

    run: str
    round_number: int
    node: str

    def __str__(self) -> str:
        return f"{PREFIX}/{self.run}/rounds/{self.round_number}/acks/{self.node}"


@dataclass(frozen=True, slots=True)
class ResultTopic:
    """`rounds/{r}/result`: outcome of every node, metrics and the hash chain. Retained, by the aggregator; no node may read it."""

    run: str
    round_number: int

    def __str__(self) -> str:
        return f"{PREFIX}/{self.run}/rounds/{self.round_number}/result"


@dataclass(frozen=True, slots=True)
class MetricsTopic:
    """`metrics/{node}`: training, ONNX and device figures. Not retained, by that node."""

    run: str
    node: str

    def __str__(self) -> str:
        return f"{PREFIX}/{self.run}/metrics/{self.node}"


Topic: TypeAlias = (
    StateTopic
    | ControlTopic
    | AggregatorTopic
    | RejectionsTopic
    | StatusTopic
    | PlanTopic
    | GlobalManifestTopic
    | GlobalChunkTopic
    | StrategyManifestTopic
    | StrategyChunkTopic
    | UpdateManifestTopic
    | UpdateChunkTopic
    | AckTopic
    | ResultTopic
    | MetricsTopic
)


def parse_topic(topic: str) -> Topic:
    """Return the typed topic of a topic name.

    Raises:
        TopicError: the name is not in the protocol; reason `unsupported_version` when only the version differs.
    """
    if len(topic) > MAX_TOPIC_CHARACTERS:
        raise TopicError(f"topic of {len(topic)} characters", reason=RejectReason.UNKNOWN_TOPIC)
    root, *levels = topic.split("/")
    if root != ROOT or not levels:
        raise TopicError(f"topic {topic!r} is not under {ROOT}/", reason=RejectReason.UNKNOWN_TOPIC)
    if levels[0] != VERSION:
        raise TopicError(f"topic {topic!r} is not of protocol version {VERSION}", reason=RejectReason.UNSUPPORTED_VERSION)
    match levels[1:]:
        case [run, "state"]:
            return StateTopic(_name(run, topic))
        case [run, "control"]:
            return ControlTopic(_name(run, topic))
        case [run, "aggregator"]:
            return AggregatorTopic(_name(run, topic))
        case [run, "rejections"]:
            return RejectionsTopic(_name(run, topic))
        case [run, "nodes", node, "status"]:
            return StatusTopic(_name(run, topic), _name(node, topic))
        case [run, "metrics", node]:
            return MetricsTopic(_name(run, topic), _name(node, topic))
        case [run, "rounds", number, *rest]:
            return _parse_round_topic(_name(run, topic), _round_number(number, topic), rest, topic)
    raise _unknown(topic)


def _parse_round_topic(run: str, round_number: int, rest: list[str], topic: str) -> Topic:
    match rest:
        case ["plan"]:
            return PlanTopic(run, round_number)
        case ["result"]:
            return ResultTopic(run, round_number)
        case ["global", "manifest"]:
            return GlobalManifestTopic(run, round_number)
        case ["global", "chunks", index]:
            return GlobalChunkTopic(run, round_number, _number(index, topic))
        case ["strategy", "manifest"]:
            return StrategyManifestTopic(run, round_number)
        case ["strategy", "chunks", index]:
            return StrategyChunkTopic(run, round_number, _number(index, topic))
        case ["updates", node, "manifest"]:
            return UpdateManifestTopic(run, round_number, _name(node, topic))
        case ["updates", node, "chunks", index]:
            return UpdateChunkTopic(run, round_number, _name(node, topic), _number(index, topic))
        case ["acks", node]:
            return AckTopic(run, round_number, _name(node, topic))
    raise _unknown(topic)


def state_filter_of_all_runs() -> str:
    """Return the filter a node without a configured run uses to find one."""
    return f"{PREFIX}/+/state"


def aggregator_filter_of_all_runs() -> str:
    """Return the filter of which runs are led."""
    return f"{PREFIX}/+/aggregator"


def rejections_filter_of_all_runs() -> str:
    """Return the filter of what every run's aggregator could not use."""
    return f"{PREFIX}/+/rejections"


def status_filter(run: str) -> str:
    """Return the filter of every node's status."""
    return f"{PREFIX}/{run}/nodes/+/status"


def metrics_filter(run: str) -> str:
    """Return the filter of every node's metrics."""
    return f"{PREFIX}/{run}/metrics/+"


def update_filters(run: str, round_number: int) -> tuple[str, ...]:
    """Return the filters of every update of one round: what the aggregator follows."""
    updates = f"{PREFIX}/{run}/rounds/{round_number}/updates/+"
    return (f"{updates}/chunks/+", f"{updates}/manifest")


def round_filter(run: str, round_number: int) -> str:
    """Return the filter of everything retained of one round."""
    return f"{PREFIX}/{run}/rounds/{round_number}/#"


def plan_filter(run: str) -> str:
    """Return the filter of every round's plan."""
    return f"{PREFIX}/{run}/rounds/+/plan"


def update_manifest_filter(run: str) -> str:
    """Return the filter of every update's manifest, in every round."""
    return f"{PREFIX}/{run}/rounds/+/updates/+/manifest"


def result_filter(run: str) -> str:
    """Return the filter of every round's result."""
    return f"{PREFIX}/{run}/rounds/+/result"


def global_prefix(run: str, round_number: int) -> str:
    """Return what all topics of a round's global model begin with."""
    return f"{PREFIX}/{run}/rounds/{round_number}/global/"


def update_prefix(run: str, round_number: int, node: str) -> str:
    """Return what all topics of a node's update begin with."""
    return f"{PREFIX}/{run}/rounds/{round_number}/updates/{node}/"


def node_round_filters(run: str, round_number: int, node: str) -> tuple[str, ...]:
    """Return the filters of one round as a node follows it: plan, global model and its own acks."""
    return (
        str(PlanTopic(run, round_number)),
        f"{PREFIX}/{run}/rounds/{round_number}/global/chunks/+",
        str(GlobalManifestTopic(run, round_number)),
        str(AckTopic(run, round_number, node)),
    )


def _name(text: str, topic: str) -> str:
    if not _NAME.fullmatch(text):
        raise _unknown(topic)
    return text


def _number(text: str, topic: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise _unknown(topic)
    return int(text)


def _round_number(text: str, topic: str) -> int:
    number = _number(text, topic)
    if number == 0:
        raise _unknown(topic)
    return number


def _unknown(topic: str) -> TopicError:
    return TopicError(f"topic {topic!r} is not in the protocol", reason=RejectReason.UNKNOWN_TOPIC)
