"""Dashboard 1: how the run does."""

from __future__ import annotations

from grafana.source.dashboard import dashboard, run_variable
from grafana.source.panels import GREEN_UP, RUN, SHARE, Json, Query, history, select, stat, table, text, timeseries

INTRODUCTION = """**One run, round by round.** Above: where it is now. Below: how good the global model is on the whole test set, then where
the time and the bytes went. A dip after a good round, or a class that stays red, is what non-IID data does: see *Edge nodes*
for who trained on what. Blue marks are round starts, orange ones nodes lost or back, purple ones aggregator starts."""


def build() -> Json:
    """Return the dashboard."""
    panels = [*_now(), *_quality(), *_outcomes(), *_costs()]
    return dashboard("federation", "FedMQ 1: Federation", "One run, round by round.", panels, [run_variable()])


def _now() -> list[Json]:
    return [
        text(INTRODUCTION),
        stat("Accuracy", select('"accuracy"', "round"), description="Of the last global model.", thresholds=GREEN_UP, decimals=1, **SHARE),
        stat(
            "F1 macro",
            select('"f1_macro"', "round"),
            description="Mean over classes: rare ones count as much.",
            thresholds=GREEN_UP,
            decimals=1,
            **SHARE,
        ),
        stat("Round", select('"round_number"', "round"), description="Rounds that are done.", unit="none"),
        stat("Progress", select('"progress"', "round"), description="Share of the run's rounds that is done.", **SHARE),
        stat(
            "Time left",
            select('"seconds_left"', "round"),
            description="Rounds left times the median of the last ten.",
            unit="s",
            decimals=0,
        ),
        stat("Updates accepted", select('"accepted"', "round"), description="In the last round.", unit="none"),
    ]


def _quality() -> list[Json]:
    confusion = Query(
        text=f'SELECT /^predicted_/ FROM "confusion" WHERE {RUN} AND $timeFilter GROUP BY "class" ORDER BY time DESC LIMIT 1', is_table=True
    )
    return [
        timeseries(
            "Accuracy and F1 on the test set",
            [select('"accuracy", "f1_macro", "f1_weighted"', "round")],
            description="Of the global model after each round.",
            **SHARE,
        ),
        timeseries("Loss on the test set", [select('"loss"', "round")], description="Mean cross-entropy in nats.", unit="none", minimum=0),
        history(
            "Accuracy per class",
            select('"value"', "class_accuracy", group_by='"class"', alias="class $tag_class"),
            description="One row a class, one cell a round: recall on the test set. Red: the model does not know that class yet.",
            height=10,
            **SHARE,
        ),
        table(
            "Last confusion matrix",
            [confusion],
            description="Rows are true classes, columns what the model took them for; cells count test images.",
            unit="none",
            height=10,
        ),
    ]


def _outcomes() -> list[Json]:
    return [
        timeseries(
            "Outcome of each round",
            [select('"accepted", "rejected", "discarded"', "round")],
            description="Updates accepted, rejected (with a reason) and discarded (late or twice).",
            unit="none",
            stacked_bars=True,
            width=8,
        ),
        timeseries(
            "Cohort and stragglers",
            [select('"cohort", "stragglers"', "round")],
            description="Nodes drawn, and those not in time.",
            unit="none",
            width=8,
        ),
        timeseries(
            "Bytes", [select('"bytes_up", "bytes_down"', "round")], description="Updates up, global models down.", unit="bytes", width=8
        ),
    ]


def _costs() -> list[Json]:
    phases = '"download_seconds", "train_seconds", "upload_seconds", "aggregate_seconds", "evaluate_seconds"'
    return [
        timeseries(
            "Where a round's seconds went",
            [select(phases, "round")],
            description="Download and training are the slowest node's; upload is the rest of the collection, the plan's way included.",
            unit="s",
            stacked_bars=True,
        ),
        timeseries("Length of a round", [select('"seconds"', "round")], description="From its opening to its result.", unit="s", minimum=0),
        timeseries(
            "Strategy's diagnostics",
            [select('"value"', "diagnostic", group_by='"name"', alias="$tag_name")],
            description="What the aggregation rule says of itself; a rule without any leaves this empty.",
            unit="none",
        ),
        table(
            "Outcome per node",
            [
                Query(
                    text='SELECT sum("accepted") AS "accepted", sum("rejected") AS "rejected", sum("discarded") AS "discarded", '
                    f'last("num_examples") AS "examples" FROM "outcome" WHERE {RUN} AND $timeFilter GROUP BY "node"',
                    is_table=True,
                )
            ],
            description="Over the time range.",
            unit="none",
        ),
    ]
