"""Every measured point has one shape, checked against one table: `federation.metric_schema`.

A point is what one line of metrics.jsonl, one row of the database and one dot in a panel have in common.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from federation.errors import MessageError, RejectReason
from federation.messages import MetricPoint
from federation.metric_schema import MEASUREMENTS
from federation.metric_types import Measurement, MetricField

Value: TypeAlias = float | int | str

SERVER = "aggregator"
"""Stands for a node in the server's own ONNX figures; no node may have this name (fedmq/site.py)."""

MAX_TEXT_CHARACTERS = 500
"""Longest text field; only the aggregator's own events have one."""

MAX_INTEGER = 2**63 - 1
"""Of the database's integer fields."""

MAX_AHEAD_NS = 3_600 * 10**9
"""A node's clock may be an hour ahead of the aggregator's; beyond, its points would hide in the future."""

MAX_BEHIND_NS = 14 * 86_400 * 10**9
"""As long as the broker keeps an absent aggregator's queue (broker/mosquitto.conf): what waited is not late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One measured point; measurement, tags and time are its identity, as in the database."""

    measurement: str
    tags: Mapping[str, str]
    fields: Mapping[str, Value]
    time_ns: int
    """Nanoseconds since 1970."""

    @property
    def identity(self) -> tuple[str, int, tuple[tuple[str, str], ...]]:
        """What tells it apart; a second point of this identity overwrites the first."""
        return self.measurement, self.time_ns, tuple(sorted(self.tags.items()))

    def to_line(self) -> str:
        """Return the point as a line of metrics.jsonl, newline included."""
        value = {"measurement": self.measurement, "tags": dict(self.tags), "fields": dict(self.fields), "time_ns": self.time_ns}
        return json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n"


def make_point(measurement: str, tags: Mapping[str, str], fields: Mapping[str, Any], time_ns: int) -> Point:
    """Return a checked point; fields that are None are left out, numbers get the kind the schema says.

    Raises:
        MessageError: a measurement, tag or field that the schema does not know, a value of another kind, or no field.
    """
    schema = MEASUREMENTS.get(measurement)
    if schema is None:
        raise _invalid(f"measurement {measurement!r} is not in docs/metrics.md")
    for name, value in tags.items():
        _check_tag(schema, name, value)
    by_name = schema.by_name
    checked = {name: _checked(schema, by_name, name, value) for name, value in fields.items() if value is not None}
    if not checked:
        raise _invalid(f"{measurement} has no field")
    return Point(measurement=measurement, tags=dict(tags), fields=checked, time_ns=time_ns)


def point_of_node(point: MetricPoint, *, tags: Mapping[str, str], round_number: int, now_ns: int) -> Point:
    """Return what a node sent as a checked point.

    Args:
        point: as received.
        tags: run, strategy and node, from the sender's identity: they win over the point's own.
        round_number: of the report; 0 leaves it out.
        now_ns: the receiver's clock.

    Raises:
        MessageError: outside the schema, a measurement nodes don't send, or a time that can't be true.
    """
    schema = MEASUREMENTS.get(point.measurement)
    if schema is None or schema.sender != "node":
        raise _invalid(f"nodes do not send {point.measurement!r}")
    if not now_ns - MAX_BEHIND_NS <= point.time_ns <= now_ns + MAX_AHEAD_NS:
        seconds = (point.time_ns - now_ns) / 1e9
        raise _invalid(f"{point.measurement} is {seconds:+.0f} s off this clock: set the node's clock (NTP)")
    # A newer node may know more fields than this table: the others are still worth keeping.
    fields: dict[str, Any] = {name: value for name, value in point.fields.items() if name in schema.by_name}
    if round_number and "round_number" in schema.by_name:
        fields["round_number"] = round_number
    return make_point(point.measurement, {**point.tags, **tags}, fields, point.time_ns)


def parse_line(line: str | bytes) -> Point:
    """Return the point of one line of metrics.jsonl.

    Raises:
        MessageError: no JSON, not a point, or outside the schema.
    """
    try:
        value = json.loads(line)
        measurement, tags, fields, time_ns = (value[name] for name in ("measurement", "tags", "fields", "time_ns"))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _invalid("not a line of metrics.jsonl") from None
    if not (isinstance(measurement, str) and isinstance(tags, dict) and isinstance(fields, dict) and type(time_ns) is int):
        raise _invalid("not a line of metrics.jsonl")
    if not 0 <= time_ns <= MAX_INTEGER:
        raise _invalid("a time that no database has")
    return make_point(measurement, tags, fields, time_ns)


def _check_tag(schema: Measurement, name: str, value: object) -> None:
    allowed = schema.tag_values(name)
    if allowed is None:
        raise _invalid(f"{schema.name} has no tag {name!r}")
    if not isinstance(value, str) or not allowed.fullmatch(value):
        raise _invalid(f"{schema.name}: tag {name} can't be {value!r}"[:200])


def _checked(schema: Measurement, by_name: Mapping[str, MetricField], name: str, value: object) -> Value:
    field = by_name.get(name)
    if field is None:
        raise _invalid(f"{schema.name} has no field {name!r}")
    if field.kind == "text":
        if isinstance(value, str):
            # Half of a surrogate pair, or what is cut to one, can't be written anywhere.
            return value[:MAX_TEXT_CHARACTERS].encode("utf-8", "replace").decode()
    elif isinstance(value, (bool, int)):
        # Before anything is made of it: JSON's integers have no end, floats and their own texts have.
        if abs(value) <= MAX_INTEGER:
            return float(value) if field.kind == "float" else int(value)
        raise _invalid(f"{schema.name}.{name} is an integer of {value.bit_length()} bits")
    elif isinstance(value, float) and math.isfinite(value):
        # A field has one kind for ever: the database refuses an integer where a float came first.
        if field.kind == "float":
            return value
        if value.is_integer() and abs(value) <= MAX_INTEGER:
            return int(value)
    raise _invalid(f"{schema.name}.{name} must be {field.kind}, not {value!r}"[:200])


def _invalid(detail: str) -> MessageError:
    return MessageError(detail, reason=RejectReason.INVALID_MESSAGE)
