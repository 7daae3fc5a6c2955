"""Evaluates alert rules as Grafana does: last values of queries, joined by their tags, a condition, and how long it holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from tests.telemetry.grafana import DATABASES, Range, filled
from tests.telemetry.influx import InfluxServer

Labels: TypeAlias = tuple[tuple[str, str], ...]

EVERY_SECONDS = 30
"""How often a rule is evaluated."""

UNITS = {"s": 1, "m": 60}


def pending_seconds(rule: Mapping[str, Any]) -> int:
    """Return how long a rule's condition must hold before it fires."""
    number, unit = re.fullmatch(r"(\d+)([sm])", rule["for"]).groups()  # type: ignore[union-attr]  # a test says that it matches
    return int(number) * UNITS[unit]


def holds(rule: Mapping[str, Any], server: InfluxServer, now_ms: int) -> set[Labels]:
    """Return of what a rule's condition holds at a moment."""
    found: dict[str, dict[Labels, float]] = {}
    answered: dict[str, dict[Labels, float]] = {}
    for entry in rule["data"]:
        model, ref = entry["model"], entry["refId"]
        if entry["datasourceUid"] in DATABASES:
            window = Range(since_ms=now_ms - 1000 * entry["relativeTimeRange"]["from"], until_ms=now_ms)
            series = server.query(filled(model["query"], {}, window), database=DATABASES[entry["datasourceUid"]])
            answered[ref] = last_values(series)
        elif model["type"] == "reduce":
            assert (model["reducer"], model["settings"]) == ("last", {"mode": "dropNN"})
            found[ref] = answered[model["expression"]]
        else:
            return {labels for labels, values in joined(found) if condition(model["expression"], values)}
    raise AssertionError("a rule ends with its condition")


def last_values(series: Sequence[Mapping[str, Any]]) -> dict[Labels, float]:
    """Return the last value of each series that has one."""
    found = {}
    for entry in series:
        values = [row[1] for row in entry["values"] if row[1] is not None]
        if values:
            found[tuple(sorted(entry.get("tags", {}).items()))] = float(values[-1])
    return found


def joined(values: Mapping[str, Mapping[Labels, float]]) -> list[tuple[Labels, dict[str, float]]]:
    """Return the rows of several values: those whose tags agree; what has no partner is left out."""
    rows: list[tuple[Labels, dict[str, float]]] = [((), {})]
    for name, known in values.items():
        rows = [
            (tuple(sorted({**dict(labels), **dict(others)}.items())), {**row, name: value})
            for labels, row in rows
            for others, value in known.items()
            if all(dict(labels).get(tag, text) == text for tag, text in others)
        ]
    return rows


def condition(expression: str, values: Mapping[str, float]) -> bool:
    """Return whether a condition holds: numbers, comparisons, `-` and `&&`."""

    def number(term: str) -> float:
        left, *rest = term.split(" - ")
        value = values[left.strip()[1:]] if left.strip().startswith("$") else float(left)
        return value - sum(number(part) for part in rest)

    for part in expression.split("&&"):
        left, comparison, right = re.fullmatch(r"\s*(.+?)\s*(==|<|>)\s*(.+?)\s*", part).groups()  # type: ignore[union-attr]
        one, other = number(left), number(right)
        if not {"==": one == other, "<": one < other, ">": one > other}[comparison]:
            return False
    return True


def fires(rule: Mapping[str, Any], server: InfluxServer, since_ms: int, until_ms: int) -> dict[Labels, int]:
    """Return of what a rule fires between two moments, and when first, in milliseconds since 1970."""
    began: dict[Labels, int] = {}
    fired: dict[Labels, int] = {}
    for now_ms in range(since_ms, until_ms + 1, 1000 * EVERY_SECONDS):
        true = holds(rule, server, now_ms)
        began = {labels: began.get(labels, now_ms) for labels in true}
        for labels, first_ms in began.items():
            if now_ms - first_ms >= 1000 * pending_seconds(rule):
                fired.setdefault(labels, now_ms)
    return fired
