"""The parts a dashboard is made of: queries, panels, rows, variables, as Grafana's JSON model wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]

ROUNDS: Json = {"type": "influxdb", "uid": "fedmq"}
"""Data source of what is kept for ever: rounds, training, ONNX, events."""

SAMPLES: Json = {"type": "influxdb", "uid": "fedmq-samples"}
"""Data source of samples: devices, nodes, broker."""

GRID_COLUMNS = 24
PANEL_HEIGHT = 8
NO_DATA = "No points yet: is a run going on, and is the right run and time range chosen?"

RUN = '"run" =~ /^$run$/'
NODE = '"node" =~ /^$node$/'

SHARE: Json = {"unit": "percentunit", "minimum": 0, "maximum": 1}
"""How a share in [0, 1] is shown."""

GREEN_UP: Sequence[tuple[str, float | None]] = (("red", None), ("yellow", 0.5), ("green", 0.8))
"""Shares that should be high."""

RED_UP: Sequence[tuple[str, float | None]] = (("green", None), ("yellow", 0.75), ("red", 0.9))
"""Shares that should be low: disk, memory."""

PLAIN: Sequence[tuple[str, float | None]] = (("blue", None),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One InfluxQL query."""

    text: str
    alias: str = ""
    source: Mapping[str, Any] | None = None
    is_table: bool = False

    def to_target(self, index: int, default_source: Json) -> Json:
        """Return it as a panel's target."""
        return {
            "refId": chr(ord("A") + index),
            "datasource": dict(self.source or default_source),
            "query": self.text,
            "rawQuery": True,
            "resultFormat": "table" if self.is_table else "time_series",
            "alias": self.alias,
        }


def select(fields: str, measurement: str, *, where: Sequence[str] = (RUN,), group_by: str = "", alias: str = "$col") -> Query:
    """Return a query of every point in the time range."""
    conditions = " AND ".join([*where, "$timeFilter"])
    text = f'SELECT {fields} FROM "{measurement}" WHERE {conditions}{f" GROUP BY {group_by}" if group_by else ""}'
    return Query(text=text, alias=alias)


def sampled(
    expression: str, measurement: str, *, where: Sequence[str] = (RUN,), tags: str = "", fill: str = "none", alias: str = "$col"
) -> Query:
    """Return a query of one value per interval of the panel, per series of `tags`."""
    groups = ", ".join(["time($__interval)", *([tags] if tags else [])])
    conditions = " AND ".join([*where, "$timeFilter"])
    return Query(
        text=f'SELECT {expression} FROM "{measurement}" WHERE {conditions} GROUP BY {groups} fill({fill})', alias=alias, source=SAMPLES
    )


def panel(
    kind: str,
    title: str,
    queries: Sequence[Query],
    *,
    description: str,
    unit: str = "short",
    width: int = 12,
    height: int = PANEL_HEIGHT,
    thresholds: Sequence[tuple[str, float | None]] = PLAIN,
    minimum: float | None = None,
    maximum: float | None = None,
    decimals: int | None = None,
    custom: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    mappings: Sequence[Json] = (),
    overrides: Sequence[Json] = (),
    color: str | None = None,
    transformations: Sequence[Json] = (),
) -> Json:
    """Return a panel without its place; `Layout` gives it one.

    Args:
        kind: Grafana's panel type.
        title: short; the unit stands at the axis.
        queries: what it shows.
        description: what one sees, behind the panel's information mark.
        unit: Grafana's unit identifier.
        width: of 24 columns.
        height: in grid units.
        thresholds: colour from a value on; the first from minus infinity.
        minimum: of the axis.
        maximum: of the axis.
        decimals: shown; None lets Grafana choose.
        custom: the panel type's field options.
        options: the panel type's options.
        mappings: value mappings.
        overrides: field overrides.
        color: colour mode instead of the type's default.
        transformations: applied to the results in order.
    """
    defaults: Json = {
        "unit": unit,
        "noValue": NO_DATA if kind not in {"stat", "gauge"} else "-",
        "thresholds": {"mode": "absolute", "steps": [{"color": name, "value": value} for name, value in thresholds]},
        "color": {"mode": color or ("palette-classic" if kind in {"timeseries", "barchart", "xychart", "trend"} else "thresholds")},
        "mappings": list(mappings),
        "custom": dict(custom or {}),
    }
    for name, value in (("min", minimum), ("max", maximum), ("decimals", decimals)):
        if value is not None:
            defaults[name] = value
    source = dict(queries[0].source or ROUNDS)
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": source,
        "gridPos": {"w": width, "h": height},
        "fieldConfig": {"defaults": defaults, "overrides": list(overrides)},
        "options": dict(options or {}),
        "targets": [query.to_target(index, source) for index, query in enumerate(queries)],
        "transformations": list(transformations),
    }


def timeseries(title: str, queries: Sequence[Query], *, stacked_bars: bool = False, **settings: Any) -> Json:
    """Return lines over time, or stacked bars."""
    custom: Json = {"drawStyle": "line", "lineWidth": 2, "fillOpacity": 8, "showPoints": "auto", "pointSize": 5, "spanNulls": True}
    if stacked_bars:
        custom |= {
            "drawStyle": "bars",
            "fillOpacity": 80,
            "lineWidth": 0,
            "showPoints": "never",
            "stacking": {"mode": "normal", "group": "A"},
        }
    options = {
        "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"], "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return panel("timeseries", title, queries, custom=custom, options=options, **settings)


def stat(title: str, query: Query, **settings: Any) -> Json:
    """Return one number: the last one."""
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "area",
        "textMode": "auto",
        "justifyMode": "auto",
        "orientation": "auto",
    }
    return panel("stat", title, [query], options=options, **({"width": 4, "height": 4} | settings))


def timeline(title: str, queries: Sequence[Query], *, words: Mapping[str, tuple[str, str]], **settings: Any) -> Json:
    """Return states over time; `words` gives each value its word and colour."""
    mapping = {
        "type": "value",
        "options": {value: {"text": word, "color": colour, "index": index} for index, (value, (word, colour)) in enumerate(words.items())},
    }
    options = {
        "showValue": "auto",
        "rowHeight": 0.9,
        "mergeValues": True,
        "alignValue": "left",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return panel(
        "state-timeline", title, queries, options=options, mappings=[mapping], custom={"fillOpacity": 75, "lineWidth": 0}, **settings
    )


def history(title: str, query: Query, **settings: Any) -> Json:
    """Return a heatmap: one row a series, one cell a point, coloured by its value."""
    options = {
        "showValue": "auto",
        "rowHeight": 0.95,
        "colWidth": 0.98,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return panel(
        "status-history", title, [query], options=options, color="continuous-RdYlGr", custom={"fillOpacity": 85, "lineWidth": 0}, **settings
    )


def table(title: str, queries: Sequence[Query], **settings: Any) -> Json:
    """Return a table of the rows of table queries."""
    custom = {"align": "auto", "cellOptions": {"type": "auto"}, "filterable": True}
    options = {"showHeader": True, "cellHeight": "sm", "footer": {"show": False, "reducer": ["sum"], "countRows": False, "fields": ""}}
    return panel("table", title, queries, custom=custom, options=options, **settings)


def text(markdown: str, *, height: int = 3) -> Json:
    """Return a panel that says what one sees."""
    return {
        "type": "text",
        "title": "",
        "description": "",
        "gridPos": {"w": GRID_COLUMNS, "h": height},
        "options": {
            "mode": "markdown",
            "content": markdown,
            "code": {"language": "plaintext", "showLineNumbers": False, "showMiniMap": False},
        },
        "transparent": True,
    }


def row(title: str, *, repeat: str | None = None) -> Json:
    """Return a heading across the page; `repeat` makes one for each value of a variable, with the panels below it."""
    heading: Json = {"type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": {"w": GRID_COLUMNS, "h": 1}}
    if repeat:
        heading |= {"repeat": repeat, "repeatDirection": "h"}
    return heading
