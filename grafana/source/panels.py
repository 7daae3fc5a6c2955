"""The kinds of panels, as Grafana 12's JSON model wants them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grafana.source.fields import BY_NAME, Json, Property, cell, fixed, join, organize, override, thresholds, transform, values
from grafana.source.palette import BAD, UNKNOWN
from grafana.source.queries import MIXED, ROUNDS

PLUGIN_VERSION = "12.2.1"
"""Of the panels' options: an older one makes Grafana convert them."""

AFTER_A_ROUND = "After the first round. (A journal of before run_summary: import it again.)"
TEXT_COLOR = "text"


def panel(
    kind: str,
    title: str,
    targets: Sequence[Json],
    place: tuple[int, int, int, int],
    *,
    description: str = "",
    options: Json | None = None,
    custom: Json | None = None,
    overrides: Sequence[Json] = (),
    transformations: Sequence[Json] = (),
    interval: str | None = None,
    **defaults: Any,
) -> Json:
    """Return a panel.

    Args:
        kind: Grafana's name of it.
        title: of the panel.
        targets: its queries.
        place: x, y, width, height in the grid of 24 columns.
        description: what one sees, where the title does not say it.
        options: of the kind.
        custom: of the kind's fields.
        overrides: of some fields.
        transformations: of the queries' answers.
        interval: shortest step of `$__interval`.
        defaults: of every field: unit, decimals, min, max, color, thresholds, mappings, noValue, links.
    """
    fields = {"mappings": [], "custom": custom or {}, "color": {"mode": "thresholds"}, "thresholds": thresholds((TEXT_COLOR, None))}
    sources = {str(target["datasource"]): target["datasource"] for target in targets}
    x, y, width, height = place
    return {
        "type": kind,
        "title": title,
        "description": description,
        "gridPos": {"x": x, "y": y, "w": width, "h": height},
        "datasource": dict(MIXED if len(sources) > 1 else next(iter(sources.values()), ROUNDS)),
        "fieldConfig": {"defaults": fields | defaults, "overrides": list(overrides)},
        "options": options or {},
        "targets": [{"refId": chr(ord("A") + index), **target} for index, target in enumerate(targets)],
        "transformations": list(transformations),
        "pluginVersion": PLUGIN_VERSION,
        **({"interval": interval} if interval else {}),
    }


def stat(
    title: str,
    targets: Sequence[Json],
    x: int,
    width: int = 4,
    *,
    fields: str = "/.*/",
    color_mode: str = "value",
    graph: str = "none",
    text: str = "value",
    value_size: int = 24,
    title_size: int | None = None,
    justify: str = "auto",
    transformations: Sequence[Json] | None = None,
    **more: Any,
) -> Json:
    """Return a tile of the first row: three high, figures of one size. A fixed size wraps instead of shrinking."""
    sizes = {"valueSize": value_size} | ({"titleSize": title_size} if title_size else {})
    options = {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": fields, "values": False},
        "colorMode": color_mode,
        "graphMode": graph,
        "textMode": text,
        "justifyMode": justify,
        "orientation": "auto",
        "text": sizes,
    }
    changes = [organize(["Time"])] if transformations is None else transformations
    return panel("stat", title, targets, (x, 0, width, 3), options=options, transformations=changes, **{"noValue": "–", **more})


def table(
    title: str,
    targets: Sequence[Json],
    place: tuple[int, int, int, int],
    *,
    sort: Sequence[tuple[str, bool]] = (),
    custom: Json | None = None,
    **more: Any,
) -> Json:
    """Return a table; `sort` names columns as shown, and whether the largest comes first."""
    footer = {"show": False, "reducer": ["sum"], "countRows": False, "fields": ""}
    options: Json = {"showHeader": True, "cellHeight": "sm", "footer": footer}
    if sort:
        options["sortBy"] = [{"displayName": name, "desc": descends} for name, descends in sort]
    cells = {"align": "auto", **dict_of(cell("auto")), "filterable": False, "inspect": False, **(custom or {})}
    return panel("table", title, targets, place, options=options, custom=cells, **more)


def dict_of(properties: Sequence[Property]) -> Json:
    """Return a cell's properties as part of a field's `custom`."""
    return {name.removeprefix("custom."): value for name, value in properties}


def by_round(
    title: str,
    targets: Sequence[Json],
    place: tuple[int, int, int, int],
    *,
    limits: Sequence[Property] = (),
    overrides: Sequence[Json] = (),
    transformations: Sequence[Json] | None = None,
    **more: Any,
) -> Json:
    """Return curves over rounds; without rows this kind says its own words, never `noValue`."""
    number = {"matcher": {"id": "byType", "options": "number"}}
    options = {
        "mapping": "auto",
        "series": [{"frame": {"matcher": {"id": "byIndex", "options": 0}}, "x": number, "y": number}],
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    custom = {
        "show": "lines",
        "pointSize": {"fixed": 4},
        "lineWidth": 2,
        "lineStyle": {"fill": "solid"},
        "axisPlacement": "auto",
        "axisGridShow": True,
    }
    # Limits for all would bound the rounds, too.
    bounded = [override("/^(?!round)/", *limits, by="byRegexp")] if limits else []
    changes = [organize(["Time"])] if transformations is None else transformations
    shown = {"color": BY_NAME, "noValue": AFTER_A_ROUND, **more}
    return panel(
        "xychart",
        title,
        targets,
        place,
        options=options,
        custom=custom,
        overrides=[*overrides, *bounded],
        transformations=changes,
        **shown,
    )


def a_column_each(tag: str) -> list[Json]:
    """Return transformations to one column a value of the tag, by round; a missing round is undefined (null would be drawn as 0)."""
    parts = {"fields": [tag], "keepFields": False, "naming": {"asLabels": False}}
    return [
        organize(["Time"]),
        transform("partitionByValues", parts),
        join("round_number"),
        organize(names={"round_number": "round"}),
    ]


def lines(
    title: str,
    targets: Sequence[Json],
    place: tuple[int, int, int, int],
    *,
    fill: int = 0,
    width: float = 1.5,
    gap_ms: int | bool = 60_000,
    points: str = "auto",
    is_stacked: bool = False,
    is_bars: bool = False,
    has_legend: bool = True,
    limit: float | None = None,
    soft_min: float = 0,
    soft_max: float | None = None,
    **more: Any,
) -> Json:
    """Return curves over time.

    Args:
        title: of the panel.
        targets: its queries.
        place: x, y, width, height.
        fill: opacity below the line, in per cent.
        width: of the line.
        gap_ms: a longer pause breaks the line; True joins whatever comes.
        points: auto, always, never.
        is_stacked: one on the other.
        is_bars: bars instead of lines.
        has_legend: whether names are shown.
        limit: a dashed line that should not be passed.
        soft_min: the axis begins here, unless a value is lower.
        soft_max: likewise.
        more: as for `panel`.
    """
    custom: Json = {
        "drawStyle": "bars" if is_bars else "line",
        "lineWidth": width,
        "fillOpacity": fill,
        "showPoints": points,
        "pointSize": 4,
        "spanNulls": gap_ms,
        # Only this breaks a line where a derivative has dropped the nulls.
        "insertNulls": False if gap_ms is True or not gap_ms else max(gap_ms, 150_000),
        "lineInterpolation": "linear",
        "stacking": {"mode": "normal" if is_stacked else "none", "group": "A"},
        "gradientMode": "none",
        "axisPlacement": "auto",
        "axisLabel": "",
        "axisSoftMin": soft_min,
        "scaleDistribution": {"type": "linear"},
    }
    if soft_max is not None:
        custom["axisSoftMax"] = soft_max
    if is_bars:
        custom |= {"barAlignment": 1, "barWidthFactor": 1}
    if limit is not None:
        custom["thresholdsStyle"] = {"mode": "dashed"}
        more["thresholds"] = thresholds(("transparent", None), (BAD, limit))
    options = {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": has_legend, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    shown = {"color": BY_NAME, "noValue": "No points in this time.", "interval": "10s", **more}
    return panel("timeseries", title, targets, place, options=options, custom=custom, **shown)


def timeline(title: str, targets: Sequence[Json], place: tuple[int, int, int, int], states: Any, **more: Any) -> Json:
    """Return bars of states over time. With colour mode `thresholds` Grafana would ignore the states' colours here."""
    options = {
        "mergeValues": True,
        "showValue": "never",
        "alignValue": "left",
        "rowHeight": 0.85,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    custom = {"fillOpacity": 85, "lineWidth": 0, "spanNulls": False}
    return panel(
        "state-timeline",
        title,
        targets,
        place,
        options=options,
        custom=custom,
        color=fixed(UNKNOWN),
        mappings=[values(states)],
        interval="1m",
        **more,
    )


def bars_by_round(
    title: str, query: Json, place: tuple[int, int, int, int], colors: dict[str, str], *, unit: str, description: str
) -> Json:
    """Return stacked bars, one a round; the round is text, because a number would be a bar itself."""
    options = {
        "xField": "round_number",
        "orientation": "vertical",
        "stacking": "normal",
        "showValue": "never",
        "barWidth": 0.9,
        "groupWidth": 0.9,
        "barRadius": 0,
        "xTickLabelSpacing": 60,
        "xTickLabelRotation": 0,
        "xTickLabelMaxLength": 0,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "multi", "sort": "none"},
        "fullHighlight": False,
    }
    return panel(
        "barchart",
        title,
        [query],
        place,
        description=description,
        options=options,
        custom={"lineWidth": 0, "fillOpacity": 85, "gradientMode": "none", "axisPlacement": "auto"},
        color={"mode": "palette-classic"},
        transformations=[organize(["Time"]), as_round_text()],
        # A label left out is null, and would show `noValue`.
        overrides=[
            override("round_number", ("unit", "none"), ("noValue", " ")),
            *[override(name, ("color", fixed(color))) for name, color in colors.items()],
        ],
        unit=unit,
        noValue=AFTER_A_ROUND,
    )


def as_round_text() -> Json:
    """Return the transformation that makes the round's number text."""
    conversion = {"targetField": "round_number", "destinationType": "string"}
    return transform("convertFieldType", {"conversions": [conversion], "fields": {}})


def alerts(title: str, place: tuple[int, int, int, int], *, labels: str = "", is_count: bool = False) -> Json:
    """Return the list, or the number, of the alerts that fire or could not be evaluated."""
    x, y, width, height = place
    options: Json = {
        "viewMode": "stat" if is_count else "list",
        "groupMode": "default",
        "groupBy": [],
        "maxItems": 20,
        "sortOrder": 3,
        "dashboardAlerts": False,
        "alertName": "",
        "alertInstanceLabelFilter": labels,
        "datasource": "-- Grafana --",
        "folder": None,
        "showInstances": False,
        "stateFilter": {"firing": True, "error": True, "pending": False, "noData": False, "normal": False},
    }
    return {
        "type": "alertlist",
        "title": title,
        "description": "",
        "gridPos": {"x": x, "y": y, "w": width, "h": height},
        "options": options,
        "fieldConfig": {"defaults": {}, "overrides": []},
        "targets": [],
        "pluginVersion": PLUGIN_VERSION,
    }


def text(markdown: str, place: tuple[int, int, int, int]) -> Json:
    """Return a panel of words."""
    x, y, width, height = place
    code = {"language": "plaintext", "showLineNumbers": False, "showMiniMap": False}
    return {
        "type": "text",
        "title": "",
        "gridPos": {"x": x, "y": y, "w": width, "h": height},
        "transparent": True,
        "options": {"mode": "markdown", "content": markdown, "code": code},
        "pluginVersion": PLUGIN_VERSION,
    }


def row(title: str, y: int, panels: Sequence[Json] = (), *, is_collapsed: bool = True) -> Json:
    """Return a heading across the page; a collapsed one holds its panels, and asks nothing until it is opened."""
    return {
        "type": "row",
        "title": title,
        "collapsed": is_collapsed,
        "panels": list(panels),
        "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
    }
