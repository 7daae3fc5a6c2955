"""The page of a run's nodes: which needs me?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grafana.source.dashboard import UIDS, dashboard, query_variable, rounds_tile, run_variable, start_variable, state_tile
from grafana.source.fields import (
    NODE_STATES,
    NONE,
    Json,
    Property,
    cell,
    fixed,
    join,
    organize,
    override,
    share,
    special,
    thresholds,
    values,
)
from grafana.source.palette import BAD, FIRST_LINE, GOOD, SECOND_LINE, THIRD_LINE, UNFIT, UNJUDGED, UNKNOWN, WARN
from grafana.source.panels import TEXT_COLOR, lines, row, stat, table, timeline
from grafana.source.queries import DURING, FRESH, RANGE, ROUNDS, RUN, SAMPLES, SINCE, series, target

GONE = "No samples in this time: they are kept for 30 days, their hourly means below for ever."
NO_HOUR = "No hourly mean in this time: one is made after each whole hour."
NO_TRAINING = "No training in this time."
HOT_CELSIUS = 80
"""A Raspberry Pi slows down from here on."""

WARM_CELSIUS = 75
FULL_DISK = 0.9
"""Above it a rule fires: a node sits rounds out once an update does not fit."""

CERTIFICATE_DAYS = 14
"""Below it a rule fires."""

STATES: Sequence[tuple[str, str, str]] = (
    ("online", 'floor("v" / 3)', GOOD),
    ("unfit", '"v" * ("v" - 1) * (3 - "v") / 2', UNFIT),
    ("silent", '"v" * ("v" - 2) * ("v" - 3) / 2', WARN),
    ("offline", 'floor((3 - "v") / 3)', BAD),
)
"""Name, an expression that is 1 in this one of the states 0 to 3 and 0 in the others (InfluxQL has no CASE), colour."""

LOOKS: Sequence[tuple[str, str, str]] = (
    ("hot", "temperature_celsius", f'floor("v" / {HOT_CELSIUS})'),
    ("slow", "throttled", '"v"'),
    ("disk", "disk_used", f'floor("v" / {FULL_DISK})'),
    ("cert", "certificate_days", f'floor({2 * CERTIFICATE_DAYS} / ("v" + {CERTIFICATE_DAYS}.001))'),
)
"""Name, field of `device`, an expression that is 1 where a node needs a look."""


def build() -> Json:
    """Return the page."""
    panels = [state_tile(), rounds_tile(4), _node_counts(), _look_counts(), _every_node(), *_course()]
    panels += [
        row("State of each node", 21, [_states()]),
        row("$node in detail", 22, is_collapsed=False),
        *_one_node(),
        row("All nodes over time", 37, _all_nodes()),
        row("Hourly means, kept for ever", 38, _hourly()),
    ]
    # Of what is kept for ever: a run's nodes are still known when its samples are gone.
    nodes = f'SHOW TAG VALUES FROM "outcome" WITH KEY = "node" WHERE {RUN}'
    variables = [run_variable(), start_variable(), query_variable("node", nodes, label="Details of", sort=1)]
    return dashboard("devices", "FedMQ Devices", "Which node needs me?", panels, variables)


def _count(ref: str, field: str, measurement: str, expression: str) -> Json:
    """Return a query of how many nodes' last fresh value makes the expression 1: 0 where none, nothing where nobody reports."""
    last = f'SELECT last("{field}") AS "v" FROM "{measurement}" WHERE {FRESH} GROUP BY "node"'
    return series(f'SELECT sum("x") AS "n" FROM (SELECT {expression} AS "x" FROM ({last}) GROUP BY "node")', source=SAMPLES, ref=ref)


def _named(names: Mapping[str, str | None]) -> list[Json]:
    found = []
    for name, color in names.items():
        properties: list[Property] = [("displayName", name), *([("color", fixed(color))] if color else [])]
        found.append(override(name, *properties, by="byFrameRefID"))
    return found


def _counts_tile(title: str, queries: Sequence[Json], x: int, **more: Any) -> Json:
    return stat(
        title, queries, x, 8, text="value_and_name", justify="center", title_size=13, value_size=22, transformations=[], fields="", **more
    )


def _node_counts() -> Json:
    return _counts_tile(
        "Nodes",
        [_count(name, "state", "node", expression) for name, expression, _ in STATES],
        8,
        overrides=_named({name: color for name, _, color in STATES}),
        description="In the last 2 minutes of the chosen time. Silent: connected, but nothing heard for 60 s. Unfit: it has a problem. "
        "–: the aggregator says nothing, or the samples are gone (30 days).",
    )


def _look_counts() -> Json:
    return _counts_tile(
        "Need a look",
        [_count(name, field, "device", expression) for name, field, expression in LOOKS],
        16,
        thresholds=thresholds((UNKNOWN, None), (WARN, 1)),
        overrides=_named({name: None for name, _, _ in LOOKS}),
        description=f"Nodes of {HOT_CELSIUS} °C and more; slowed by heat or voltage; disk more than 90 % full; certificate that expires "
        f"within {CERTIFICATE_DAYS} days.",
    )


def _every_node() -> Json:
    day = f"{RUN} AND time > ${{__to}}ms - 24h AND time <= ${{__to}}ms"
    figures = {
        "CPU": "cpu",
        "Memory": "memory_used",
        "Temp": "temperature_celsius",
        "Slowed": "throttled",
        "Disk": "disk_used",
        "Certificate": "certificate_days",
    }
    # The first query's time, over a day, is when a node was last seen; joining numbers the times.
    queries = [
        target(f'SELECT last("memory_used_bytes") AS "seen_value" FROM "device" WHERE {day} GROUP BY "node"', SAMPLES, ref="seen"),
        target(
            f'SELECT last("samples_per_second") AS "Training speed", "round_number" AS "Round" FROM "train" WHERE {day} GROUP BY "node"',
            ROUNDS,
            ref="train",
        ),
        *[
            target(f'SELECT last("{field}") AS "{name}" FROM "device" WHERE {FRESH} GROUP BY "node"', SAMPLES, ref=name)
            for name, field in figures.items()
        ],
        target(
            f'SELECT last("state") AS "State" FROM "node" WHERE {RUN} AND time >= ${{__to}}ms - 24h AND time < ${{__to}}ms '
            'GROUP BY time(2m, ${__to}ms), "node" fill(-1) ORDER BY time DESC LIMIT 1',
            SAMPLES,
            ref="state",
        ),
    ]
    order = ["node", "State", "Time 1", "Time", "Temp", "Slowed", "Disk", "Certificate", "Round", "Training speed", "Memory", "CPU"]
    hidden = ["seen_value", *(f"Time {number}" for number in range(2, len(queries) + 2))]
    return table(
        "Every node, trouble first",
        queries,
        (0, 3, 24, 10),
        sort=[("State", False)],
        description="As of the end of the chosen time; figures older than 2 minutes are not shown. A click on a node shows it below.",
        transformations=[join("node"), organize(hidden, order, {"node": "Node", "Time 1": "Last seen", "Time": "Last seen"})],
        overrides=_node_columns(),
        custom={"minWidth": 60},
        noValue=GONE,
        mappings=[NONE],
        fieldMinMax=True,
    )


def _node_columns() -> list[Json]:
    details = f"/d/{UIDS['devices']}?var-run=${{run}}&var-node=${{__value.text}}&${{__url_time_range}}"
    link = {"title": "Details of ${__value.text}", "url": details, "targetBlank": False}
    judged: Property = ("color", {"mode": "thresholds"})
    unknown = special("null", "– unknown", UNKNOWN)
    bar: list[Property] = [*cell("gauge"), ("custom.minWidth", 130)]
    temperature = thresholds((UNKNOWN, None), (WARN, WARM_CELSIUS), (BAD, HOT_CELSIUS))
    days = thresholds((BAD, None), (WARN, CERTIFICATE_DAYS), (UNKNOWN, 2 * CERTIFICATE_DAYS + 2))
    slowed = values({0: ("no", UNKNOWN), 1: ("yes", BAD)})
    return [
        override("/.*/", ("noValue", "–"), by="byRegexp"),
        override("Node", ("custom.width", 92), ("links", [link])),
        override(
            "State",
            ("mappings", [values(NODE_STATES), unknown]),
            ("noValue", "– unknown"),
            *cell("color-background"),
            ("custom.width", 92),
            ("color", fixed(UNKNOWN)),
            ("custom.align", "left"),
        ),
        override("Last seen", ("unit", "dateTimeFromNow"), ("custom.width", 150)),
        override("Round", ("custom.width", 62), ("decimals", 0), ("custom.align", "right")),
        override("Training speed", ("decimals", 0), ("min", 0), ("color", fixed(FIRST_LINE)), *bar, ("unit", "suffix:img/s")),
        override("CPU", *share(2, 3, UNJUDGED)),
        override("Memory", *share(0.9, 0.97, UNJUDGED)),
        override("Disk", *share(0.8, FULL_DISK, UNJUDGED)),
        override(
            "Temp",
            ("unit", "celsius"),
            ("decimals", 0),
            ("thresholds", temperature),
            judged,
            *cell("color-text"),
            ("custom.width", 68),
        ),
        override("Slowed", ("mappings", [slowed, NONE]), *cell("color-text"), ("color", fixed(UNKNOWN)), ("custom.width", 68)),
        override(
            "Certificate",
            ("unit", "suffix:days"),
            ("decimals", 0),
            ("thresholds", days),
            judged,
            *cell("color-text"),
            ("custom.width", 92),
        ),
    ]


def _course() -> list[Json]:
    bucket = "time($__interval, ${__to}ms)"

    def nodes(expression: str) -> str:
        last = f'SELECT last("state") AS "v" FROM "node" WHERE {DURING} GROUP BY {bucket}, "node" fill(none)'
        each = f'SELECT {expression} AS "x" FROM ({last}) GROUP BY "node"'
        return f'SELECT sum("x") FROM ({each}) WHERE time >= ${{__from}}ms AND time < ${{__to}}ms GROUP BY {bucket} fill(null)'

    return [
        lines(
            "Nodes by state",
            [series(nodes(expression), name, SAMPLES) for name, expression, _ in STATES],
            (0, 13, 12, 8),
            fill=75,
            width=0,
            gap_ms=False,
            points="never",
            is_stacked=True,
            is_bars=True,
            overrides=[override(name, ("color", fixed(color))) for name, _, color in STATES],
            interval="1m",
            decimals=0,
            min=0,
            noValue=GONE,
        ),
        lines(
            "Training speed",
            [series(f'SELECT "samples_per_second" FROM "train" WHERE {RANGE} GROUP BY "node"', "$tag_node")],
            (12, 13, 12, 8),
            gap_ms=True,
            points="always",
            unit="suffix:img/s",
            decimals=0,
            noValue=NO_TRAINING,
        ),
    ]


def _states() -> Json:
    query = f'SELECT last("state") FROM "node" WHERE {DURING} GROUP BY time($__interval, ${{__to}}ms), "node" fill(-1)'
    return timeline("State of each node", [series(query, "$tag_node", SAMPLES)], (0, 22, 24, 14), NODE_STATES)


def _one_node() -> list[Json]:
    where = f"{RUN} AND \"node\" = '$node' AND $timeFilter"

    def mean(field: str, name: str) -> Json:
        return series(f'SELECT mean("{field}") FROM "device" WHERE {where} GROUP BY time($__interval) fill(null)', name, SAMPLES)

    def rate(field: str, name: str) -> Json:
        text = f'SELECT non_negative_derivative(last("{field}"), 1s) FROM "device" WHERE {where} GROUP BY time($__interval) fill(null)'
        return series(text, name, SAMPLES)

    def trained(title: str, field: str, name: str, x: int, **more: Any) -> Json:
        query = series(f'SELECT "{field}" FROM "train" WHERE {where}', name)
        shown: Json = {"gap_ms": True, "points": "always", "has_legend": False, "color": fixed(FIRST_LINE), "noValue": NO_TRAINING}
        return lines(title, [query], (x, 30, 8, 7), min=0, **shown, **more)

    def colored(name: str, color: str) -> Json:
        return override(name, ("color", fixed(color)))

    alone: Json = {"has_legend": False, "color": fixed(FIRST_LINE)}
    no_sensor = "This device has no temperature sensor, or no samples in this time."
    return [
        lines("Processor", [mean("cpu", "all cores")], (0, 23, 8, 7), fill=12, unit="percentunit", min=0, max=1, noValue=GONE, **alone),
        lines(
            "Memory",
            [mean("memory_used_bytes", "device"), mean("process_memory_bytes", "training")],
            (8, 23, 8, 7),
            overrides=[colored("device", FIRST_LINE), colored("training", SECOND_LINE)],
            unit="bytes",
            min=0,
            noValue=GONE,
        ),
        lines(
            "Network",
            [rate("network_sent_bytes", "sent"), rate("network_received_bytes", "received")],
            (16, 23, 8, 7),
            overrides=[colored("received", FIRST_LINE), colored("sent", THIRD_LINE)],
            unit="Bps",
            min=0,
            noValue=GONE,
        ),
        lines(
            "Temperature",
            [mean("temperature_celsius", "processor")],
            (0, 30, 8, 7),
            limit=HOT_CELSIUS,
            soft_min=30,
            soft_max=90,
            unit="celsius",
            noValue=no_sensor,
            **alone,
        ),
        trained("Training, by round", "samples_per_second", "speed", 8, unit="suffix:img/s"),
        trained("Accuracy on its own validation share", "validation_accuracy", "own accuracy", 16, unit="percentunit", max=1),
    ]


def _all_nodes() -> list[Json]:
    def every(title: str, field: str, x: int, y: int, function: str = "mean", **more: Any) -> Json:
        text = f'SELECT {function}("{field}") FROM "device" WHERE {RANGE} GROUP BY time($__interval), "node" fill(null)'
        # Half a minute of samples a dot: of fifty nodes a third as many are drawn, and asked for.
        return lines(title, [series(text, "$tag_node", SAMPLES)], (x, y, 12, 8), **{"noValue": GONE, "interval": "30s", **more})

    no_sensor = "No temperature sensor on these nodes, or no samples in this time."
    a_share: Json = {"unit": "percentunit", "min": 0, "max": 1}
    return [
        every(
            "Temperature",
            "temperature_celsius",
            0,
            38,
            limit=HOT_CELSIUS,
            soft_min=30,
            soft_max=90,
            unit="celsius",
            noValue=no_sensor,
        ),
        every("Processor", "cpu", 12, 38, **a_share),
        every("Memory", "memory_used", 0, 46, **a_share),
        every("Disk", "disk_used", 12, 46, "last", limit=FULL_DISK, **a_share),
    ]


def _hourly() -> list[Json]:
    whole_run = (
        'SELECT count("cpu") AS "Hours", mean("cpu") AS "CPU", max("memory_used") AS "Memory", max("temperature_celsius") AS "Temp", '
        f'mean("throttled") AS "Slowed", last("disk_used") AS "Disk" FROM "device_hourly" WHERE {SINCE} GROUP BY "node"'
    )

    def curve(title: str, field: str, x: int, **more: Any) -> Json:
        query = series(f'SELECT "{field}" FROM "device_hourly" WHERE {RANGE} GROUP BY "node"', "$tag_node")
        return lines(title, [query], (x, 39, 8, 8), gap_ms=True, points="always", noValue=NO_HOUR, **more)

    return [
        # By the run, not by the range: a run of less than an hour has its mean outside its own range.
        table(
            "Over the whole run",
            [target(whole_run)],
            (0, 39, 8, 8),
            description="Mean of processor and slowed, most of memory and temperature, last of disk; of hourly means, not of samples.",
            transformations=[organize(["Time"], ["node"], {"node": "Node"})],
            overrides=[
                override("/.*/", ("noValue", "–"), by="byRegexp"),
                override("Node", ("unit", "string"), ("custom.width", 86)),
                override("Hours", ("unit", "none")),
                override("Temp", ("unit", "celsius")),
            ],
            custom={"minWidth": 50},
            color=fixed(TEXT_COLOR),
            unit="percentunit",
            decimals=0,
            noValue="No hourly mean yet: one is made after each whole hour.",
        ),
        curve("Processor, hourly", "cpu", 8, unit="percentunit", min=0, max=1),
        curve("Temperature, hourly", "temperature_celsius", 16, unit="celsius", soft_min=30, soft_max=90),
    ]
