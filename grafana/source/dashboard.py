"""A whole page: panels, variables, and the same six links on each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grafana.source.fields import RUN_STATES, Json, thresholds
from grafana.source.palette import UNKNOWN
from grafana.source.panels import stat
from grafana.source.queries import ROUNDS, RUN, run_state, summary, target

TAG = "fedmq"
SCHEMA_VERSION = 39
"""Of the model that the pages were seen in; 12 reads it and brings it up to date in memory."""

UIDS = {
    "runs": "fedmq-runs",
    "federation": "fedmq-federation",
    "devices": "fedmq-edge-nodes",
    "onnx": "fedmq-onnx",
    "server": "fedmq-broker",
    "compare": "fedmq-compare-runs",
}
"""Of the pages: those of older versions are kept, so that people's links go on to work."""

LINKS = (
    ("runs", "Runs", "Every run, newest first", False),
    ("federation", "Federation", "One run: how good, how far, what holds it up", True),
    ("devices", "Devices", "Which node needs me?", True),
    ("onnx", "ONNX", "What the model costs on each device", True),
    ("server", "Server", "Broker, telemetry, disk", True),
    ("compare", "Compare", "Runs side by side", False),
)
"""Page, title, tooltip, and whether run and time are carried there."""


def query_variable(
    name: str, query: str, *, label: str = "", is_hidden: bool = False, is_multi: bool = False, sort: int = 0, current: Json | None = None
) -> Json:
    """Return a variable whose values a query finds; its first column of text."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": dict(ROUNDS),
        "definition": query,
        "query": query,
        "refresh": 2,
        "sort": sort,
        "multi": is_multi,
        "includeAll": is_multi,
        "current": current or {},
        "options": [],
        "regex": "",
        "hide": 2 if is_hidden else 0,
        "skipUrlSync": is_hidden,
    }


def choice_variable(name: str, label: str, choices: Mapping[str, str], chosen: str) -> Json:
    """Return a variable of fixed values: shown -> used."""
    options = [{"text": shown, "value": used, "selected": used == chosen} for shown, used in choices.items()]
    return {
        "type": "custom",
        "name": name,
        "label": label,
        "query": ",".join(shown if shown == used else f"{shown} : {used}" for shown, used in choices.items()),
        "options": options,
        "current": next(option for option in options if option["selected"]),
        "multi": False,
        "includeAll": False,
        "hide": 0,
        "skipUrlSync": False,
    }


def run_variable() -> Json:
    """Return the variable `run`: newest first, and so the newest is chosen."""
    query = 'SELECT "run", "life" FROM "run_summary" WHERE "life" > 0 ORDER BY time DESC'
    return query_variable("run", query, label="Run")


def start_variable() -> Json:
    """Return the hidden variable `start`: of a name used twice only the present life is shown."""
    return query_variable("start", f'SELECT last("started_ms") FROM "run_summary" WHERE {RUN}', is_hidden=True)


def step_variable() -> Json:
    """Return the hidden variable `step`: a tenth of the run, in milliseconds."""
    return query_variable("step", f'SELECT ceil(last("seconds") * 1000 / 10) FROM "run_summary" WHERE {RUN}', is_hidden=True)


def state_tile() -> Json:
    """Return the first tile of every page of one run."""
    return stat(
        "State",
        [target(run_state(RUN, at="${__to}ms"))],
        0,
        fields="/^state$/",
        color_mode="background",
        mappings=[RUN_STATES],
        thresholds=thresholds((UNKNOWN, None)),
        noValue="Not known",
        description="As of the end of the chosen time. Silent: not ended, but its aggregator has said nothing for 2 minutes. Not known: "
        "no such run, or a journal of before run_summary: import it again.",
    )


def rounds_tile(x: int) -> Json:
    """Return the tile that says how far the run is."""
    return stat("Rounds", [summary("rounds")], x, description="Done, of all.")


def dashboard(
    page: str,
    title: str,
    description: str,
    panels: Sequence[Json],
    variables: Sequence[Json] = (),
    *,
    since: str = "now-15m",
    refresh: str = "10s",
    has_time_picker: bool = True,
) -> Json:
    """Return a page; panels get their numbers, those of a collapsed row from a hundred on."""
    for identifier, entry in enumerate(panels, start=1):
        entry["id"] = identifier
        for inner, hidden in enumerate(entry.get("panels", ()), start=1):
            hidden["id"] = identifier * 100 + inner
    carries = page not in {"runs", "compare"}
    intervals = ["5s", "10s", "30s", "1m", "5m"]
    return {
        "uid": UIDS[page],
        "title": title,
        "description": description,
        "tags": [TAG],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": refresh,
        "timezone": "browser",
        "weekStart": "",
        "fiscalYearStartMonth": 0,
        "liveNow": False,
        "time": {"from": since, "to": "now"},
        "timepicker": {"refresh_intervals": intervals} | ({} if has_time_picker else {"hidden": True}),
        "links": [_link(*link[:3], carries=carries and link[3]) for link in LINKS],
        "annotations": {"list": []},
        "templating": {"list": list(variables)},
        "panels": list(panels),
    }


def _link(page: str, title: str, tooltip: str, *, carries: bool) -> Json:
    return {
        "type": "link",
        "title": title,
        "url": f"/d/{UIDS[page]}",
        "icon": "",
        "tooltip": tooltip,
        "asDropdown": False,
        "includeVars": carries,
        "keepTime": carries,
        "targetBlank": False,
        "tags": [],
    }
