"""What a measurement and its fields are: kinds, units, allowed tags."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["float", "integer", "text"]

ENGINES = ("torch", "onnx", "onnx-int8")
"""What runs a model: PyTorch, ONNX Runtime in float32, and in int8."""

STEADY_ROUNDS = 3
"""Measurements of a node below which no speed-up is shown: of two, one made under load can't be told."""

STEADY_SPREAD = 0.5
"""Interquartile range over median from which on a node's speed-up is not shown: it was measured under changing load."""

NUM_CORE_FIELDS = 16
"""Cores shown one by one; of a larger machine the mean and the busiest core tell enough."""

MAX_CONFUSION_CLASSES = 32
"""A confusion matrix of more classes is left out of the points; summary.json has it all."""

EVENT_KINDS = ("aggregator_started", "round_opened", "node_joined", "node_lost", "run_ended")

_NAME = r"[a-z0-9][a-z0-9_-]{0,62}"
_TAG_VALUES: Mapping[str, re.Pattern[str]] = MappingProxyType(
    {
        "run": re.compile(_NAME),
        "node": re.compile(_NAME),
        "strategy": re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,127}"),
        "class": re.compile(r"[0-9]{2,4}"),
        "engine": re.compile("|".join(ENGINES)),
        "kind": re.compile("|".join(EVENT_KINDS)),
        "reason": re.compile(r"[a-z_]{1,40}"),
        "name": re.compile(r"[A-Za-z0-9_.-]{1,64}"),
        # Number and name of a class; a quote or backslash would break the pages' JSON aliases.
        "label": re.compile(r'[^"\\\x00-\x1f\x7f\ud800-\udfff]{1,80}'),
    }
)


@dataclass(frozen=True, slots=True)
class MetricField:
    """One field of a measurement."""

    name: str
    kind: Kind
    unit: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One measurement. Every point has the tags `run` and `strategy`, and those named here."""

    name: str
    sender: Literal["node", "aggregator"]
    when: str
    keep: Literal["rounds", "samples"]
    """`rounds`: few points, kept for ever; `samples`: many, kept raw for 30 days and as hourly means after."""
    tags: tuple[str, ...]
    fields: Sequence[MetricField]

    @cached_property
    def by_name(self) -> Mapping[str, MetricField]:
        """Field name -> field."""
        return MappingProxyType({field.name: field for field in self.fields})

    def tag_values(self, name: str) -> re.Pattern[str] | None:
        """Return what a tag's value may be; None when the measurement has no such tag."""
        return _TAG_VALUES[name] if name in {"run", "strategy", *self.tags} else None


def float_field(name: str, unit: str, meaning: str) -> MetricField:
    """Return a field of real numbers."""
    return MetricField(name, "float", unit, meaning)


def integer_field(name: str, unit: str, meaning: str) -> MetricField:
    """Return a field of whole numbers."""
    return MetricField(name, "integer", unit, meaning)


def text_field(name: str, meaning: str) -> MetricField:
    """Return a field of text: only the aggregator's own points have one."""
    return MetricField(name, "text", "", meaning)
