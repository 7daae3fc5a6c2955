"""The page of several runs: which is better, and where?"""

from __future__ import annotations

from grafana.source.dashboard import UIDS, choice_variable, dashboard, query_variable
from grafana.source.federation import AS_SHARES, FROM_ZERO, first_column, heat
from grafana.source.fields import RUN_STATES, Json, Property, calculate, cell, fixed, join, matrix, organize, override, sort, thresholds
from grafana.source.palette import FIRST_LINE, RECALL
from grafana.source.panels import a_column_each, by_round, table
from grafana.source.queries import LABELLED, run_state, target

RUNS = '"run" =~ /^$runs$/'
"""The variable is not named `run`, so that a link from a page of one run does not set it."""

NAMES = {
    "run": "Run",
    "state": "State",
    "method": "Method",
    "rounds": "Rounds",
    "accuracy": "Accuracy",
    "best": "Best",
    "f1": "Macro F1",
    "worst_class": "Worst class",
    "worst": "Its recall",
    "reached": "reached",
    "per_round": "Round time",
    "up": "Updates up",
    "length": "Length",
}
CLASS_BY_RUN = "class ↓   run →"


def build() -> Json:
    """Return the page."""
    panels = [
        _side_by_side(),
        _curve("Accuracy by round", "accuracy", 0, "percentunit", "% of the test set", AS_SHARES),
        _curve("Loss by round", "loss", 12, "none", "nats", FROM_ZERO),
        _recall(),
    ]
    description = "Runs of one data set side by side, by round."
    return dashboard("compare", "FedMQ Compare", description, panels, _variables(), refresh="1m", has_time_picker=False)


def _variables() -> list[Json]:
    newest = " ORDER BY time DESC"
    began = 'FROM "run_summary" WHERE "life" > 0'
    runs = f'SELECT "run", "life" {began} AND "dataset" = \'$dataset\'{newest} LIMIT $newest'
    everything = {"text": ["All"], "value": ["$__all"], "selected": True}
    return [
        query_variable("dataset", f'SELECT "dataset", "life" {began}{newest}', label="Data set"),
        choice_variable("newest", "Newest", {number: number for number in ("6", "12", "25", "100")}, "6"),
        query_variable("runs", runs, label="Runs", is_multi=True, current=everything),
        choice_variable("target", "Goal", {f"{share} %": str(share / 100) for share in (50, 60, 70, 80, 90, 95)}, "0.8"),
    ]


def _side_by_side() -> Json:
    def of(fields: str, measurement: str, condition: str = "") -> Json:
        return target(f'SELECT {fields} FROM "{measurement}" WHERE {RUNS}{condition} GROUP BY "run"')

    last = {
        "method": "method",
        "rounds": "rounds",
        "accuracy": "accuracy",
        "f1": "f1_macro",
        "worst_class": "worst_class",
        "worst": "worst_accuracy",
        "length": "seconds",
    }
    queries = [
        of(", ".join(f'last("{field}") AS "{name}"' for name, field in last.items()), "run_summary"),
        of('max("accuracy") AS "best", median("seconds") AS "per_round", sum("bytes_up") AS "up"', "round"),
        of('first("round_number") AS "reached"', "round", ' AND "accuracy" >= $target'),
        target(run_state(RUNS)),
    ]
    link = {"title": "Open ${__data.fields.Run}", "url": f"/d/{UIDS['federation']}?var-run=${{__data.fields.Run}}", "targetBlank": False}
    percent: list[Property] = [("unit", "percentunit"), ("decimals", 1), ("custom.width", 84)]
    state: list[Property] = [("custom.width", 112), ("mappings", [RUN_STATES]), *cell("color-background"), ("custom.align", "left")]
    accuracy: list[Property] = [*AS_SHARES, *cell("gauge"), ("custom.minWidth", 100), ("color", fixed(FIRST_LINE))]
    return table(
        "Side by side",
        queries,
        (0, 0, 24, 9),
        sort=[("Accuracy", True)],
        description="Accuracy, macro F1 and worst class of the last round, on the test set.",
        transformations=[
            join("run"),
            organize(
                ["Time", *(f"Time {number}" for number in range(1, 5))],
                list(NAMES),
                {column: shown for column, shown in NAMES.items() if column != "reached"},
            ),
        ],
        overrides=[
            override("Run", ("links", [link]), ("custom.width", 170)),
            override("State", *state),
            override("Method", ("custom.width", 86)),
            override("Rounds", ("custom.width", 100), ("custom.align", "right")),
            override("Accuracy", ("unit", "percentunit"), ("decimals", 1), *accuracy),
            *[override(name, *percent) for name in ("Best", "Macro F1", "Its recall")],
            override("Worst class", ("custom.width", 190)),
            override("reached", ("displayName", "Round of ${target:text}"), ("unit", "none"), ("custom.width", 124)),
            override("Round time", ("unit", "s"), ("decimals", 1), ("custom.width", 104)),
            override("Updates up", ("unit", "bytes"), ("custom.width", 100)),
            override("Length", ("unit", "dthms"), ("custom.width", 92)),
        ],
        noValue="–",
    )


def _curve(title: str, field: str, x: int, unit: str, label: str, limits: list[Property]) -> Json:
    return by_round(
        title,
        [target(f'SELECT "round_number", "{field}" AS "Value" FROM "round" WHERE {RUNS} GROUP BY "run"')],
        (x, 9, 12, 10),
        limits=limits,
        transformations=a_column_each("run"),
        overrides=[
            override("round", ("unit", "none"), ("decimals", 0), ("custom.axisLabel", "round")),
            override("/^(?!round$)/", ("custom.axisLabel", label), by="byRegexp"),
        ],
        unit=unit,
        noValue="No round yet.",
    )


def _recall() -> Json:
    query = f'SELECT last("value") AS "recall" FROM "class_accuracy" WHERE {RUNS}{LABELLED} GROUP BY "class", "label", "run"'
    return table(
        "Recall of each class, last round",
        [target(query)],
        (0, 19, 24, 12),
        description="Per cent of the class's test images that are recognised.",
        transformations=[
            sort("class"),
            calculate("recall", "*", "100"),
            matrix("run", "label", emptyValue="null"),
            organize(names={"label\\run": CLASS_BY_RUN}),
        ],
        custom={**heat(), "minWidth": 90},
        overrides=[first_column(CLASS_BY_RUN)],
        unit="none",
        decimals=0,
        min=0,
        max=100,
        thresholds=thresholds(*RECALL),
        noValue="–",
    )
