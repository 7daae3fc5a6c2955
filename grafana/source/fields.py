"""How a field is shown: thresholds, mappings, overrides, table cells, and the words and signs of states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from federation.condition import NodeCondition, RunCondition
from grafana.source.palette import BAD, GOING_ON, GOOD, PAUSED, UNFIT, UNKNOWN, WAITING, WARN

Json: TypeAlias = dict[str, Any]
Property: TypeAlias = tuple[str, Any]

ALIVE = 10
"""Added to a run's state by `queries.run_state` while its aggregator speaks."""

BY_NAME: Json = {"mode": "palette-classic-by-name"}
"""A node, or a run, has one colour on every page."""


def thresholds(*steps: tuple[str, float | None]) -> Json:
    """Return colours from values on; the first from below."""
    return {"mode": "absolute", "steps": [{"color": color, "value": value} for color, value in steps]}


def fixed(color: str) -> Json:
    """Return one colour for all."""
    return {"mode": "fixed", "fixedColor": color}


def override(name: str, *properties: Property, by: str = "byName") -> Json:
    """Return properties of the fields that a matcher finds."""
    return {"matcher": {"id": by, "options": name}, "properties": [{"id": key, "value": value} for key, value in properties]}


def values(mapped: Mapping[Any, tuple[str, str]]) -> Json:
    """Return a mapping of value -> text and colour."""
    options = {str(value): {"text": text, "color": color, "index": index} for index, (value, (text, color)) in enumerate(mapped.items())}
    return {"type": "value", "options": options}


def between(first: float, last: float, text: str, color: str | None = None) -> Json:
    """Return a mapping of a range of values."""
    return {"type": "range", "options": {"from": first, "to": last, "result": _result(text, color, 0)}}


def special(match: str, text: str, color: str | None = None) -> Json:
    """Return a mapping of `null`, `empty` and their like; `null+nan` would hit texts, too."""
    return {"type": "special", "options": {"match": match, "result": _result(text, color, 20)}}


def _result(text: str, color: str | None, index: int) -> Json:
    return {"text": text, **({"color": color} if color else {}), "index": index}


def cell(kind: str, mode: str = "basic") -> list[Property]:
    """Return a table cell of a kind: auto, gauge, color-text, color-background."""
    options: Json = {"type": kind}
    if kind in {"gauge", "color-background"}:
        options["mode"] = mode
    if kind == "gauge":
        options["valueDisplayMode"] = "text"
    return [("custom.cellOptions", options)]


def share(warn: float, bad: float, low_color: str) -> list[Property]:
    """Return a bar of a share in [0, 1] that should be low."""
    return [
        ("unit", "percentunit"),
        ("decimals", 0),
        ("min", 0),
        ("max", 1),
        ("thresholds", thresholds((low_color, None), (WARN, warn), (BAD, bad))),
        ("color", {"mode": "thresholds"}),
        *cell("gauge"),
        ("custom.minWidth", 96),
    ]


NONE = special("null", "–", UNKNOWN)

SILENT_RUN = ("? Silent", WARN)
_RUN: Mapping[RunCondition, tuple[str, str]] = {
    RunCondition.PAUSED: ("‖ Paused", PAUSED),
    RunCondition.WAITING: ("◌ Waiting", WAITING),
    RunCondition.TRAINING: ("● Training", GOING_ON),
    RunCondition.EVALUATING: ("● Evaluating", GOING_ON),
    RunCondition.FINISHED: ("✓ Finished", GOOD),
    RunCondition.STOPPED: ("■ Stopped", UNKNOWN),
    RunCondition.FAILED: ("✕ Failed", BAD),
}
RUN_STATES = values(
    {ALIVE + condition: shown for condition, shown in _RUN.items()}
    | {int(condition): shown if condition.has_ended else SILENT_RUN for condition, shown in _RUN.items()}
)
"""Of `queries.run_state`: an ended run stays what it was; one that has not ended and says nothing is silent."""

NODE_STATES: Mapping[int, tuple[str, str]] = {
    NodeCondition.OFFLINE: ("✕ offline", BAD),
    NodeCondition.SILENT: ("? silent", WARN),
    NodeCondition.UNFIT: ("! unfit", UNFIT),
    NodeCondition.ONLINE: ("● online", GOOD),
    -1: ("– unknown", UNKNOWN),
}


def transform(kind: str, options: Json) -> Json:
    """Return a transformation."""
    return {"id": kind, "options": options}


def organize(hidden: Sequence[str] = (), order: Sequence[str] = (), names: Mapping[str, str] | None = None) -> Json:
    """Return a transformation that hides, orders and renames columns."""
    return transform(
        "organize",
        {
            "excludeByName": dict.fromkeys(hidden, True),
            "indexByName": {name: index for index, name in enumerate(order)},
            "renameByName": dict(names or {}),
        },
    )


def calculate(left: str, operator: str, right: str) -> Json:
    """Return a transformation that adds a column `v`."""
    binary = {"left": left, "operator": operator, "right": right}
    return transform("calculateField", {"mode": "binary", "alias": "v", "replaceFields": False, "timeSeries": False, "binary": binary})


def matrix(column: str, row: str, **more: str) -> Json:
    """Return a transformation that makes a matrix of the column `v`."""
    return transform("groupingToMatrix", {"columnField": column, "rowField": row, "valueField": "v", **more})


def sort(field: str) -> Json:
    """Return a transformation that sorts rows, and leaves equals in their order."""
    return transform("sortBy", {"fields": {}, "sort": [{"field": field, "desc": False}]})


def join(field: str) -> Json:
    """Return a transformation that joins the queries' tables by a column."""
    return transform("joinByField", {"byField": field, "mode": "outer"})


def as_text(field: str) -> Json:
    """Return a transformation that makes a column text."""
    return transform("convertFieldType", {"conversions": [{"targetField": field, "destinationType": "string"}], "fields": {}})
