"""A whole dashboard: its panels in a grid without gaps, its variables, links and annotations."""

from __future__ import annotations

from collections.abc import Sequence

from grafana.source.panels import GRID_COLUMNS, ROUNDS, RUN, Json

TAG = "fedmq"
SCHEMA_VERSION = 39
"""Of Grafana 11's model; 12 reads it and brings it up to date in memory."""

DASHBOARDS = ("federation", "edge-nodes", "onnx", "compare-runs", "broker")


def variable(name: str, query: str, *, label: str, is_multi: bool, source: Json = ROUNDS) -> Json:
    """Return a variable whose values a query finds; `is_multi` allows several, and all."""
    chosen: Json = {"selected": True, "text": ["All"], "value": ["$__all"]} if is_multi else {}
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": dict(source),
        "definition": query,
        "query": query,
        "refresh": 2,
        "sort": 1,
        "multi": is_multi,
        "includeAll": is_multi,
        "allValue": ".*" if is_multi else None,
        "current": chosen,
        "options": [],
        "regex": "",
        "hide": 0,
        "skipUrlSync": False,
    }


def run_variable(*, is_multi: bool = False) -> Json:
    """Return the variable `run`."""
    return variable("run", 'SHOW TAG VALUES FROM "event" WITH KEY = "run"', label="Run", is_multi=is_multi)


def node_variable() -> Json:
    """Return the variable `node`: those of the chosen run."""
    return variable("node", f'SHOW TAG VALUES FROM "train" WITH KEY = "node" WHERE {RUN}', label="Node", is_multi=True)


def strategy_variable() -> Json:
    """Return the variable `strategy`."""
    return variable("strategy", 'SHOW TAG VALUES FROM "event" WITH KEY = "strategy"', label="Strategy", is_multi=True)


def annotation(name: str, kinds: str, color: str) -> Json:
    """Return marks at the events of these kinds (a regular expression)."""
    query = f'SELECT "text", "kind", "node" FROM "event" WHERE {RUN} AND "kind" =~ /^({kinds})$/ AND $timeFilter'
    columns = {"textColumn": "text", "tagsColumn": "kind,node", "titleColumn": "", "timeEndColumn": ""}
    target = {"refId": "Anno", "query": query, "rawQuery": True, "resultFormat": "table", "fromAnnotations": True, **columns}
    return {"name": name, "datasource": dict(ROUNDS), "enable": True, "iconColor": color, "query": query, **columns, "target": target}


def dashboard(uid: str, title: str, description: str, panels: Sequence[Json], variables: Sequence[Json], *, since: str = "now-6h") -> Json:
    """Return a dashboard of panels, placed left to right, top to bottom."""
    events = [
        annotation("Round starts", "round_opened", "blue"),
        annotation("Nodes lost and back", "node_lost|node_joined", "orange"),
        annotation("Aggregator starts, run's end", "aggregator_started|run_ended", "purple"),
    ]
    links = [
        {
            "type": "dashboards",
            "title": "FedMQ",
            "tags": [TAG],
            "asDropdown": False,
            "includeVars": True,
            "keepTime": True,
            "targetBlank": False,
            "icon": "external link",
            "tooltip": "",
            "url": "",
        }
    ]
    return {
        "uid": f"fedmq-{uid}",
        "title": title,
        "description": description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "timezone": "browser",
        "weekStart": "",
        "fiscalYearStartMonth": 0,
        "liveNow": False,
        "time": {"from": since, "to": "now"},
        "timepicker": {"refresh_intervals": ["5s", "10s", "30s", "1m", "5m"]},
        "links": links,
        "annotations": {"list": events},
        "templating": {"list": list(variables)},
        "panels": placed(panels),
    }


def placed(panels: Sequence[Json]) -> list[Json]:
    """Return the panels with identifiers and places: lines are filled from the left, each as high as its highest."""
    x = y = line_height = 0
    result = []
    for identifier, entry in enumerate(panels, start=1):
        width, height = entry["gridPos"]["w"], entry["gridPos"]["h"]
        if x + width > GRID_COLUMNS:
            x, y, line_height = 0, y + line_height, 0
        result.append({"id": identifier, **entry, "gridPos": {"x": x, "y": y, "w": width, "h": height}})
        x, line_height = x + width, max(line_height, height)
    return result
