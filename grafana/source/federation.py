"""The page of one run: is it going well?"""

from __future__ import annotations

from federation.metric_types import MAX_CONFUSION_CLASSES
from grafana.source.dashboard import dashboard, rounds_tile, run_variable, start_variable, state_tile, step_variable
from grafana.source.fields import (
    Json,
    Property,
    between,
    calculate,
    cell,
    fixed,
    matrix,
    organize,
    override,
    sort,
    thresholds,
    transform,
    values,
)
from grafana.source.palette import (
    BAD,
    FIRST_LINE,
    GOING_ON,
    NEITHER,
    PHASES,
    RECALL,
    RECALL_BARS,
    SECOND_LINE,
    THIRD_LINE,
    WARN,
)
from grafana.source.panels import AFTER_A_ROUND, TEXT_COLOR, a_column_each, alerts, bars_by_round, by_round, dict_of, row, stat, table
from grafana.source.queries import FRESH, LABELLED, RUN, SILENT_SECONDS, SINCE, STEP, series, summary, target

NEWEST_FIRST = "class ↓   newest →"
TRUE_CLASS = "true ↓   taken for →"

AS_SHARES: list[Property] = [("min", 0), ("max", 1)]
FROM_ZERO: list[Property] = [("min", 0)]


def build() -> Json:
    """Return the page."""
    panels = [*_tiles(), _accuracy(), _classes(), _recall(), _confusion((12, 12, 12, 10)), *_happenings()]
    panels += [
        row("Rounds: seconds, updates, loss, bytes", 30, _rounds()),
        row("Confusion matrix across the page (more than 11 classes)", 31, [_confusion((0, 32, 24, 16), width=40)]),
        row("Figures of the strategy", 32, [_figures()]),
    ]
    variables = [run_variable(), start_variable(), step_variable()]
    description = "One run: how good is the model, how far is the run, what holds it up."
    return dashboard("federation", "FedMQ Federation", description, panels, variables, since="now-1h")


def first_column(name: str) -> Json:
    """Return an override that gives a matrix's first column the looks of words."""
    words: list[Property] = [("custom.width", 170), *cell("auto"), ("custom.align", "left"), ("unit", "string")]
    return override(name, *words, ("mappings", []), ("color", fixed(TEXT_COLOR)))


def heat() -> Json:
    """Return the `custom` of a matrix's cells."""
    return {**dict_of(cell("color-background")), "align": "center", "minWidth": 34}


def _tiles() -> list[Json]:
    ended = f'SELECT "note" FROM "run_summary" WHERE {SINCE} AND "state" >= 4 AND time <= ${{__to}}ms'
    note = f'SELECT last("note") AS "note" FROM (SELECT "note" FROM "run_summary" WHERE {FRESH}), ({ended})'
    seen = f'SELECT last("seen_ms") AS "t", "state" AS "s" FROM "run_summary" WHERE {RUN} AND time <= ${{__to}}ms'
    silent = f'SELECT "t" AS "silent since" FROM ({seen}) WHERE "t" < ${{__to}} - {SILENT_SECONDS * 1000} AND "s" < 4'
    return [
        state_tile(),
        rounds_tile(4),
        stat(
            "Accuracy",
            [target(f'SELECT "accuracy" FROM "round" WHERE {SINCE}')],
            8,
            graph="area",
            description="Of the last global model on the whole test set; the line: every round.",
            unit="percentunit",
            decimals=1,
            min=0,
            max=1,
            color=fixed(FIRST_LINE),
        ),
        stat("Nodes", [summary("nodes", FRESH)], 12, description="Online, of all. –: ended, or silent."),
        stat(
            "Time left",
            [summary("seconds_left", FRESH)],
            16,
            description="Rounds left times the median of the last ten. –: ended, waiting, paused or silent.",
            unit="s",
            decimals=0,
            mappings=[values({0: ("–", TEXT_COLOR)})],
        ),
        stat(
            "Waits for",
            [target(note), target(silent)],
            20,
            value_size=15,
            description="What the run waits for, or why it has ended; of a silent one, since when it is silent.",
            overrides=[override("silent since", ("unit", "time:[silent since] MMM D, HH:mm"), ("color", fixed(WARN)))],
        ),
    ]


def _accuracy() -> Json:
    return by_round(
        "Accuracy by round",
        [target(f'SELECT "round_number", "accuracy" AS "test accuracy", "f1_macro" AS "macro F1" FROM "round" WHERE {SINCE}')],
        (0, 3, 13, 9),
        unit="percentunit",
        limits=AS_SHARES,
        overrides=[
            override("round_number", ("unit", "none"), ("custom.axisLabel", "round"), ("decimals", 0)),
            override("test accuracy", ("custom.axisLabel", "% of the test set"), ("color", fixed(FIRST_LINE))),
            override("macro F1", ("color", fixed(SECOND_LINE))),
        ],
    )


def _classes() -> Json:
    query = (
        'SELECT last("value") AS "recall", last("taken_for") AS "taken_for", last("taken_for_share") AS "share" FROM "class_accuracy" '
        f'WHERE {SINCE}{LABELLED} GROUP BY "class", "label"'
    )
    names = {"label": "Class", "recall": "Recall", "taken_for": "Mostly taken for", "share": "How often"}
    words: list[Property] = [("unit", "string"), ("custom.align", "left")]
    return table(
        "Classes, worst first",
        [target(query)],
        (13, 3, 11, 9),
        sort=[("Recall", False)],
        description="Recall on the test set, last round, and the class it is most often taken for.",
        transformations=[organize(["Time", "class"], list(names), names)],
        overrides=[
            override("Class", *words, ("custom.minWidth", 140)),
            override("Mostly taken for", *words, ("noValue", "–"), ("custom.minWidth", 120)),
            override("How often", ("noValue", "–"), ("custom.width", 88), ("custom.align", "right")),
            override("Recall", *cell("gauge"), ("custom.minWidth", 90), *AS_SHARES, ("thresholds", thresholds(*RECALL_BARS))),
        ],
        unit="percentunit",
        decimals=0,
        noValue=AFTER_A_ROUND,
    )


def _recall() -> Json:
    query = (
        f'SELECT last("round_number") AS "number", last("value") AS "recall" FROM "class_accuracy" WHERE {SINCE}{LABELLED} '
        f'GROUP BY {STEP}, "class", "label" fill(none) ORDER BY time DESC'
    )
    return table(
        "Recall of each class by round",
        [target(query)],
        (0, 12, 12, 10),
        description="Per cent of the class's test images that are recognised; one column every tenth of the run, at most one a round.",
        # Sorted by label the rounds stay newest first: a narrow page shows the newest.
        transformations=[
            calculate("recall", "*", "100"),
            sort("label"),
            matrix("number", "label"),
            organize(names={"label\\number": NEWEST_FIRST}),
        ],
        overrides=[first_column(NEWEST_FIRST)],
        custom=heat(),
        unit="none",
        decimals=0,
        min=0,
        max=100,
        thresholds=thresholds(*RECALL),
        noValue=AFTER_A_ROUND,
    )


def _confusion(place: tuple[int, int, int, int], *, width: int | None = None) -> Json:
    # One more: what a run's classes lack is 0 after the sum, a real share at least 1. (`reduce` loses rows of which one value is null.)
    columns = ", ".join(f'1 + 100 * last("predicted_{index:02d}") / last("images") AS "{index}"' for index in range(MAX_CONFUSION_CLASSES))
    query = f'SELECT {columns} FROM "confusion" WHERE {SINCE}{LABELLED} GROUP BY "class", "label"'
    at_least_one = {"fieldName": "Total", "config": {"id": "greaterOrEqual", "options": {"value": 1}}}
    return table(
        "Confusion matrix",
        [series(query, '{"t":"$tag_label","p":"$col"}')],
        place,
        description="Per cent of the images of a true class (row) that the model took for the class of the column; the diagonal is right.",
        transformations=[
            transform("reduce", {"reducers": ["sum"], "mode": "seriesToRows", "labelsToFields": False, "includeTimeField": False}),
            transform("filterByValue", {"type": "include", "match": "all", "filters": [at_least_one]}),
            transform("extractFields", {"source": "Field", "format": "json", "replace": False, "keepTime": False}),
            calculate("Total", "-", "1"),
            matrix("p", "t"),
            organize(names={"t\\p": TRUE_CLASS}),
        ],
        overrides=[first_column(TRUE_CLASS)],
        custom=heat() | ({"width": width} if width else {}),
        color={"mode": "continuous-blues"},
        mappings=[between(-1, 0.4999, "·")],
        unit="none",
        decimals=0,
        min=0,
        max=50,
        noValue=AFTER_A_ROUND,
    )


def _happenings() -> list[Json]:
    events = f'SELECT "text" FROM "event" WHERE {SINCE} AND "kind" != \'round_opened\' ORDER BY time DESC LIMIT 200'
    updates = (
        'SELECT sum("accepted") AS "accepted", sum("rejected") AS "rejected", sum("discarded") AS "late", last("num_examples") AS "images" '
        f'FROM "outcome" WHERE {SINCE} GROUP BY "node"'
    )
    names = {"node": "Node", "accepted": "Accepted", "rejected": "Rejected", "late": "Late", "images": "Images"}
    counted: list[Property] = [*cell("color-text"), ("thresholds", thresholds((TEXT_COLOR, None), (WARN, 1)))]
    return [
        table(
            "What happened",
            [target(events)],
            (0, 22, 9, 8),
            description="Events but round starts, newest first.",
            transformations=[organize((), ["Time", "text"], {"Time": "When", "text": "Event"})],
            overrides=[
                override("When", ("custom.width", 130), ("unit", "time:MMM D HH:mm:ss")),
                override("Event", ("unit", "string")),
            ],
            noValue="Nothing yet.",
        ),
        alerts("Alerts of this run", (9, 22, 6, 8), labels='{run="$run"}'),
        table(
            "Updates of each node",
            [target(updates)],
            (15, 22, 9, 8),
            sort=[("Rejected", True), ("Late", True)],
            description="Over the whole run. Late: after the round, twice or not at all.",
            transformations=[organize(["Time"], list(names), names)],
            overrides=[override("Node", ("unit", "string")), override("Rejected", *counted), override("Late", *counted)],
            custom={"minWidth": 70},
            unit="none",
            noValue=AFTER_A_ROUND,
        ),
    ]


def _rounds() -> list[Json]:
    seconds = ", ".join(
        f'"{field}_seconds" AS "{name}"'
        for field, name in zip(("download", "train", "upload", "aggregate", "evaluate"), PHASES, strict=True)
    )
    outcomes = {"accepted": GOING_ON, "rejected": BAD, "discarded": SECOND_LINE, "stragglers": NEITHER}
    of_round = f'FROM "round" WHERE {SINCE}'
    sizes = f'SELECT "round_number", "bytes_up" / 1000000 AS "updates up", "bytes_down" / 1000000 AS "models down" {of_round}'
    return [
        bars_by_round(
            "Seconds of each round",
            target(f'SELECT "round_number", {seconds} {of_round}'),
            (0, 31, 12, 9),
            PHASES,
            unit="s",
            description="Download and training are the slowest node's; upload is the rest of the collection.",
        ),
        bars_by_round(
            "Updates of each round",
            target(f'SELECT "round_number", "accepted", "rejected", "discarded", "stragglers" {of_round}'),
            (12, 31, 12, 9),
            outcomes,
            unit="none",
            description="Stragglers: nodes of which no complete update had come.",
        ),
        by_round(
            "Loss by round",
            [target(f'SELECT "round_number", "loss" {of_round}')],
            (0, 40, 12, 8),
            unit="none",
            limits=FROM_ZERO,
            overrides=[
                override("round_number", ("custom.axisLabel", "round")),
                override("loss", ("custom.axisLabel", "nats"), ("color", fixed(FIRST_LINE))),
            ],
        ),
        by_round(
            "Bytes by round",
            [target(sizes)],
            (12, 40, 12, 8),
            unit="none",
            limits=FROM_ZERO,
            overrides=[
                override("round_number", ("unit", "none"), ("custom.axisLabel", "round")),
                # Axis ticks drop the unit, hence the division above.
                override("updates up", ("custom.axisLabel", "MB"), ("color", fixed(THIRD_LINE))),
                override("models down", ("color", fixed(GOING_ON))),
            ],
        ),
    ]


def _figures() -> Json:
    return by_round(
        "What the strategy says of its aggregation",
        [target(f'SELECT "round_number", "value" AS "Value" FROM "diagnostic" WHERE {SINCE} GROUP BY "name"')],
        (0, 33, 24, 9),
        unit="none",
        noValue="This strategy has no figures of its own.",
        transformations=a_column_each("name"),
        overrides=[
            override("round", ("custom.axisLabel", "round"), ("decimals", 0)),
            override("/^(?!round$)/", ("custom.axisLabel", "value"), by="byRegexp"),
        ],
    )
