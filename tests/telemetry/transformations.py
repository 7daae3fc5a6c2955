"""Grafana's transformations, done again: what a panel's answers become before they are drawn."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

Frame: TypeAlias = dict[str, list[Any]]
"""Column -> values; all columns of one length."""


def frame_of_table(series: Sequence[Mapping[str, Any]]) -> Frame:
    """Return InfluxQL's answer as Grafana's table: time, tags, fields, all series one below the other."""
    frame: Frame = {}
    for entry in series:
        tags = entry.get("tags", {})
        for row in entry["values"]:
            named = {"Time": row[0], **tags, **dict(zip(entry["columns"][1:], row[1:], strict=True))}
            for name, value in named.items():
                frame.setdefault(name, []).append(value)
    return frame


def frames_of_series(series: Sequence[Mapping[str, Any]], alias: str) -> list[Frame]:
    """Return InfluxQL's answer as Grafana's time series: one frame a series and column, named by the alias."""
    frames = []
    for entry in series:
        for index, column in enumerate(entry["columns"][1:], start=1):
            name = alias.replace("$col", column) or column
            for tag, value in entry.get("tags", {}).items():
                name = name.replace(f"$tag_{tag}", value)
            frames.append({"Time": [row[0] for row in entry["values"]], name: [row[index] for row in entry["values"]]})
    return frames


def rows(frame: Frame) -> Iterator[dict[str, Any]]:
    """Yield a frame row by row."""
    for index in range(len(next(iter(frame.values()), []))):
        yield {name: values[index] for name, values in frame.items()}


def transformed(frames: list[Frame], transformations: Sequence[Mapping[str, Any]]) -> list[Frame]:
    """Return frames after a panel's transformations, one after the other."""
    for transformation in transformations:
        frames = _KINDS[transformation["id"]](frames, transformation["options"])
    return frames


def _frame(found: Sequence[Mapping[str, Any]]) -> Frame:
    names = list(dict.fromkeys(name for row in found for name in row))
    return {name: [row.get(name) for row in found] for name in names}


def _organize(frames: list[Frame], options: Mapping[str, Any]) -> list[Frame]:
    order, renamed = options["indexByName"], options["renameByName"]
    result = []
    for frame in frames:
        left = [name for name in frame if not options["excludeByName"].get(name)]
        left.sort(key=lambda name: order.get(name, len(order)))
        result.append({renamed.get(name, name): frame[name] for name in left})
    return result


def _calculate(frames: list[Frame], options: Mapping[str, Any]) -> list[Frame]:
    left, operator, right = (options["binary"][name] for name in ("left", "operator", "right"))
    number = float(right)
    work = {"*": float(number).__mul__, "-": (-float(number)).__add__}[operator]
    return [
        frame | {options["alias"]: [None if value is None else work(value) for value in frame[left]]} if frame else frame
        for frame in frames
    ]


def _sort(frames: list[Frame], options: Mapping[str, Any]) -> list[Frame]:
    [entry] = options["sort"]
    return [_frame(sorted(rows(frame), key=lambda row: row[entry["field"]], reverse=entry["desc"])) for frame in frames]


def _matrix(frames: list[Frame], options: Mapping[str, Any]) -> list[Frame]:
    if not frames:
        return []
    [frame] = frames
    down, across = options["rowField"], options["columnField"]
    corner = f"{down}\\{across}"
    columns = list(dict.fromkeys(str(value) for value in frame[across]))
    found: dict[str, dict[str, Any]] = {}
    for row in rows(frame):
        found.setdefault(str(row[down]), {})[str(row[across])] = row[options["valueField"]]
    empty = None if options.get("emptyValue") == "null" else ""
    return [_frame([{corner: name, **{column: values.get(column, empty) for column in columns}} for name, values in found.items()])]


def _reduce(frames: list[Frame], options: Mapping[str, Any]) -> list[Frame]:
    assert options["reducers"] == ["sum"]
    found = []
    for frame in frames:
        for name, values in frame.items():
            if name != "Time":
                found.append({"Field": name, "Total": sum(value for value in values if value is not None)})
    return [_frame(found)] if found else []


def _filter(frames: list[Frame], options: Mapping[str, Any]) -> list[Frame]:
    [entry] = options["filters"]
    assert entry["config"]["id"] == "greaterOrEqual"
    least = entry["config"]["options"]["value"]
    return [_frame([row for row in rows(frame) if row[entry["fieldName"]] >= least]) for frame in frames]


def _extract(frames: list[Frame], options: Mapping[str, Any]) -> list[Frame]:
    return [_frame([{**row, **json.loads(row[options["source"]])} for row in rows(frame)]) for frame in frames]


def _join(frames: list[Frame], options: Mapping[str, Any]) -> list[Frame]:
    """Return one frame: a row for each value of the column; a name that several frames have gets numbers, as in Grafana."""
    field = options["byField"]
    frames = [frame for frame in frames if field in frame]
    counts: dict[str, int] = {}
    for frame in frames:
        for name in frame:
            counts[name] = counts.get(name, 0) + 1
    found: dict[Any, dict[str, Any]] = {}
    given: dict[str, int] = {}
    for frame in frames:
        names = {}
        for name in frame:
            if name == field or counts[name] == 1:
                names[name] = name
            else:
                given[name] = given.get(name, 0) + 1
                names[name] = f"{name} {given[name]}"
        for row in rows(frame):
            found.setdefault(row[field], {field: row[field]}).update({names[name]: value for name, value in row.items()})
    return [_frame(list(found.values()))] if found else []


def _convert(frames: list[Frame], options: Mapping[str, Any]) -> list[Frame]:
    [conversion] = options["conversions"]
    assert conversion["destinationType"] == "string"
    name = conversion["targetField"]
    return [
        frame | {name: [None if value is None else re.sub(r"\.0$", "", str(value)) for value in frame[name]]} if name in frame else frame
        for frame in frames
    ]


def _partition(frames: list[Frame], options: Mapping[str, Any]) -> list[Frame]:
    [field] = options["fields"]
    result = []
    for frame in frames:
        for value in dict.fromkeys(frame[field]):
            part = _frame([row for row in rows(frame) if row[field] == value])
            # Named by the value, but for the one that frames are joined by.
            result.append({name if name == "round_number" else f"{value}": values for name, values in part.items() if name != field})
    return result


_KINDS = {
    "organize": _organize,
    "calculateField": _calculate,
    "sortBy": _sort,
    "groupingToMatrix": _matrix,
    "reduce": _reduce,
    "filterByValue": _filter,
    "extractFields": _extract,
    "joinByField": _join,
    "convertFieldType": _convert,
    "partitionByValues": _partition,
}
