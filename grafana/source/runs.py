"""The home page: which runs are there, and does one need me?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grafana.source.dashboard import UIDS, dashboard
from grafana.source.fields import RUN_STATES, Json, cell, fixed, organize, override, thresholds
from grafana.source.palette import BAD, FIRST_LINE, GOING_ON, WAITING, WARN
from grafana.source.panels import TEXT_COLOR, alerts, stat, table, text
from grafana.source.queries import run_state, target

COLUMNS: Mapping[str, str] = {
    "run": "Run",
    "state": "State",
    "rounds": "Rounds",
    "progress": "Done",
    "accuracy": "Accuracy",
    "worst_class": "Worst class",
    "worst_accuracy": "Its recall",
    "nodes": "Online",
    "dataset": "Data set",
    "method": "Method",
    "started_ms": "Started",
    "seconds": "Length",
    "until": "until",
}
"""Column of the query -> heading, in the order shown: at 800 px up to the worst class."""

NO_RUN = (
    "**No run in the table?** Start one, `docker compose up` or `fedmq demo`. A run made without a database, or recorded before this page: "
    "`fedmq metrics import out/RUN --url … --token-file …`. A run appears as soon as its aggregator has started."
)


def build() -> Json:
    """Return the page."""
    panels = [*_counts(), alerts("Alerts", (20, 0, 4, 3), is_count=True), _table()]
    panels += [alerts("Alerts that fire", (0, 20, 12, 7)), text(NO_RUN, (12, 20, 12, 7))]
    description = "Every run, newest first, and what needs attention."
    return dashboard("runs", "FedMQ Runs", description, panels, since="now-24h", has_time_picker=False)


def _counts() -> list[Json]:
    def count(condition: str) -> Json:
        return target(f'SELECT count("state") AS "n" FROM ({run_state()}) WHERE {condition}')

    def tile(title: str, query: Json, x: int, color: str | None = None, **more: Any) -> Json:
        colored: Json = {"thresholds": thresholds((TEXT_COLOR, None), (color, 1))} if color else {}
        return stat(title, [query], x, fields="/^n$/", noValue="0", **colored, **more)

    all_runs = target('SELECT count("s") AS "n" FROM (SELECT last("state") AS "s" FROM "run_summary" GROUP BY "run")')
    return [
        tile("Going on", count('"state" > 11 AND "state" < 14'), 0, GOING_ON, description="Training or evaluating."),
        tile("Waiting", count('"state" = 10 OR "state" = 11'), 4, WAITING, description="For nodes, or paused."),
        tile("Silent", count('"state" < 4'), 8, WARN, description="Not ended, yet no point for 2 minutes."),
        tile("Failed", count('"state" = 6 OR "state" = 16'), 12, BAD),
        tile("Runs in all", all_runs, 16),
    ]


def _table() -> Json:
    columns = ["until", "dataset", "method", "rounds", "accuracy", "worst_class", "worst_accuracy", "started_ms", "seconds"]
    progress = '1.0 * last("rounds_done") / last("num_rounds") AS "progress"'
    link = {
        "title": "Open ${__data.fields.Run}",
        "url": f"/d/{UIDS['federation']}?var-run=${{__data.fields.Run}}&"
        "from=${__data.fields.Started.numeric}&to=${__data.fields.until}",
        "targetBlank": False,
    }
    blank = ("noValue", "–")
    shares = [("unit", "percentunit"), ("custom.width", 84), blank]
    overrides = [
        override("Run", ("custom.width", 170), ("links", [link]), ("unit", "string")),
        override(
            "State",
            ("custom.width", 112),
            ("links", [link]),
            ("mappings", [RUN_STATES]),
            *cell("color-background"),
            ("custom.align", "left"),
        ),
        override("Rounds", ("custom.width", 100), ("custom.align", "right"), blank),
        override(
            "Done",
            ("custom.minWidth", 100),
            ("unit", "percentunit"),
            ("decimals", 0),
            ("min", 0),
            ("max", 1),
            ("color", fixed(FIRST_LINE)),
            *cell("gauge"),
            blank,
        ),
        override("Accuracy", *shares, ("decimals", 1)),
        override("Worst class", ("custom.width", 190), blank),
        override("Its recall", *shares, ("decimals", 0)),
        override("Online", ("custom.width", 90), ("custom.align", "right"), blank),
        override("Data set", ("custom.width", 126), blank),
        override("Method", ("custom.width", 86), blank),
        override("Started", ("unit", "dateTimeAsIsoNoDateIfToday"), ("custom.width", 156)),
        override("Length", ("unit", "dthms"), ("custom.width", 92), blank),
        override("until", ("custom.hidden", True)),
    ]
    return table(
        "Runs, newest first",
        [target(run_state(columns=[*columns, progress], fresh=["nodes"]))],
        (0, 3, 24, 17),
        sort=[("Started", True)],
        description="A click on a run opens it, with the time range of the run. Online: nodes now; none for an ended or silent run.",
        transformations=[organize(["Time"], list(COLUMNS), COLUMNS)],
        overrides=overrides,
        noValue="No run yet: see below how to start one.",
    )
