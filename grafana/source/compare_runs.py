"""Dashboard 4: runs and strategies side by side."""

from __future__ import annotations

from grafana.source.dashboard import dashboard, run_variable, strategy_variable
from grafana.source.panels import RUN, SHARE, Json, Query, panel, select, table, text, timeseries

INTRODUCTION = """\
**Runs side by side**, by round and not by the clock, so that runs of different days compare. The table is the thesis's Table 3:
the last round of each chosen run, its best round, and its hardest class."""

CHOSEN = (RUN, '"strategy" =~ /^$strategy$/')
WHERE = " AND ".join([*CHOSEN, "$timeFilter"])


def build() -> Json:
    """Return the dashboard."""
    variables = [run_variable(is_multi=True), strategy_variable()]
    panels = [*_table_3(), *_by_round_panels(), *_details()]
    return dashboard("compare-runs", "FedMQ 4: Compare runs", "Runs and strategies side by side.", panels, variables, since="now-90d")


def _table_3() -> list[Json]:
    scores = ("accuracy", "f1_macro", "f1_weighted")
    final = Query(
        text="SELECT "
        + ", ".join(f'last("{name}") AS "{name}"' for name in (*scores, "loss", "round_number"))
        + f' FROM "round" WHERE {WHERE} GROUP BY "run", "strategy"',
        is_table=True,
    )
    best = Query(
        text='SELECT max("accuracy") AS "best accuracy", mean("seconds") AS "seconds a round" FROM "round" '
        f'WHERE {WHERE} GROUP BY "run", "strategy"',
        is_table=True,
    )
    hardest = Query(
        text=f'SELECT min("final") AS "hardest class" FROM (SELECT last("value") AS "final" FROM "class_accuracy" WHERE {WHERE} '
        'GROUP BY "run", "strategy", "class") WHERE $timeFilter GROUP BY "run", "strategy"',
        is_table=True,
    )
    merged = [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": {}}},
        {"id": "groupBy", "options": {"fields": _grouped()}},
    ]
    plain = {"round_number": "none", "loss": "none", "seconds a round": "s"}
    overrides = [
        {"matcher": {"id": "byRegexp", "options": f"^{name}.*"}, "properties": [{"id": "unit", "value": unit}]}
        for name, unit in plain.items()
    ]
    return [
        text(INTRODUCTION, height=2),
        table(
            "Table 3",
            [final, best, hardest],
            description="Last round, best round and hardest class of each run, on the global test set.",
            width=24,
            overrides=overrides,
            transformations=merged,
            unit="percentunit",
            decimals=2,
        ),
    ]


def _by_round_panels() -> list[Json]:
    return [
        _by_round("Accuracy by round", "accuracy", unit="percentunit"),
        _by_round("F1 macro by round", "f1_macro", unit="percentunit"),
        _by_round("Loss by round", "loss", unit="none"),
    ]


def _details() -> list[Json]:
    return [
        timeseries(
            "Accuracy over time",
            [select('"accuracy"', "round", where=CHOSEN, group_by='"run", "strategy"', alias="$tag_run ($tag_strategy)")],
            description="The same by the clock.",
            **SHARE,
        ),
        table(
            "Accuracy per class, last round",
            [Query(text=f'SELECT last("value") AS "accuracy" FROM "class_accuracy" WHERE {WHERE} GROUP BY "class", "run"', is_table=True)],
            description="The thesis's Figure 6: which classes one strategy knows and another does not.",
            unit="percentunit",
            decimals=1,
            width=24,
            height=10,
            transformations=[{"id": "groupingToMatrix", "options": {"columnField": "run", "rowField": "class", "valueField": "accuracy"}}],
        ),
    ]


def _by_round(title: str, field: str, *, unit: str) -> Json:
    query = Query(text=f'SELECT "round_number", "{field}" FROM "round" WHERE {WHERE} GROUP BY "run"', is_table=True)
    series = [{"x": {"matcher": {"id": "byName", "options": "round_number"}}, "y": {"matcher": {"id": "byName", "options": field}}}]
    options = {
        "mapping": "auto",
        "series": series,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    overrides = [{"matcher": {"id": "byName", "options": "round_number"}, "properties": [{"id": "unit", "value": "none"}]}]
    return panel(
        "xychart",
        title,
        [query],
        description="One colour a run.",
        unit=unit,
        width=8,
        custom={"show": "points+lines", "pointSize": {"fixed": 5}, "lineWidth": 2},
        options=options,
        overrides=overrides,
        transformations=[{"id": "partitionByValues", "options": {"fields": ["run"], "keepFields": False}}],
    )


def _grouped() -> Json:
    """One line a run: its name and strategy, and the one value each query gave it."""
    keys = {name: {"aggregations": [], "operation": "groupby"} for name in ("run", "strategy")}
    values = ("accuracy", "f1_macro", "f1_weighted", "loss", "round_number", "best accuracy", "seconds a round", "hardest class")
    return keys | {name: {"aggregations": ["lastNotNull"], "operation": "aggregate"} for name in values}
