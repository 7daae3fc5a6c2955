"""Dashboard 2: how the devices do."""

from __future__ import annotations

from grafana.source.dashboard import dashboard, node_variable, run_variable
from grafana.source.panels import (
    GREEN_UP,
    NODE,
    RED_UP,
    RUN,
    SAMPLES,
    SHARE,
    Json,
    Query,
    row,
    sampled,
    select,
    stat,
    table,
    text,
    timeline,
    timeseries,
)

INTRODUCTION = """\
**The devices.** Above: all of the chosen nodes side by side. Below: one row a node. A node that is offline, hot (a Raspberry Pi
slows down from 80 °C) or out of memory explains a straggler on *Federation*."""

BOTH = (RUN, NODE)
WORDS_ONLINE = {"1": ("online", "green"), "0": ("offline", "red")}
WORDS_THROTTLED = {"0": ("full speed", "green"), "1": ("throttled", "red")}
HEAT = (("green", None), ("yellow", 70.0), ("red", 80.0))


def build() -> Json:
    """Return the dashboard."""
    return dashboard(
        "edge-nodes", "FedMQ 2: Edge nodes", "The devices of one run.", [*_overview(), *_row_of_a_node()], [run_variable(), node_variable()]
    )


def _overview() -> list[Json]:
    per_node = {"group_by": '"node"', "alias": "$tag_node"}
    facts = Query(
        text='SELECT last("num_examples") AS "examples", last("num_cores") AS "cores", last("memory_bytes") AS "memory", '
        f'last("online") AS "online" FROM "node" WHERE {RUN} AND {NODE} AND $timeFilter GROUP BY "node"',
        source=SAMPLES,
        is_table=True,
    )
    memory = {"matcher": {"id": "byName", "options": "memory"}, "properties": [{"id": "unit", "value": "bytes"}]}
    return [
        text(INTRODUCTION, height=2),
        timeline(
            "Online",
            [sampled('last("online")', "node", where=BOTH, tags='"node"', fill="previous", alias="$tag_node")],
            words=WORDS_ONLINE,
            description="By each node's status and its will at the broker.",
            unit="none",
        ),
        table("Nodes", [facts], description="As each node described itself last.", unit="none", overrides=[memory]),
        timeseries(
            "Training speed",
            [select('"samples_per_second"', "train", where=BOTH, **per_node)],
            description="Images a second of local training.",
            unit="none",
            minimum=0,
        ),
        timeseries(
            "Local accuracy",
            [select('"validation_accuracy"', "train", where=BOTH, **per_node)],
            description="Of the received global model on each node's own validation images: the thesis's Table 4.",
            **SHARE,
        ),
        timeseries(
            "Training loss",
            [select('"loss"', "train", where=BOTH, **per_node)],
            description="Of the last local epoch.",
            unit="none",
            width=8,
        ),
        timeseries(
            "Temperature",
            [sampled('max("temperature_celsius")', "device", where=BOTH, tags='"node"', alias="$tag_node")],
            description="Hottest sensor of the processor; empty where the device tells none.",
            unit="celsius",
            thresholds=HEAT,
            width=8,
        ),
        timeline(
            "Throttled",
            [sampled('max("throttled")', "device", where=BOTH, tags='"node"', fill="previous", alias="$tag_node")],
            words=WORDS_THROTTLED,
            description="Slowed down by heat or voltage, as the Pi's firmware says; empty on other devices.",
            unit="none",
            width=8,
        ),
    ]


def _row_of_a_node() -> list[Json]:
    cores = ", ".join(f'mean("cpu_core_{index}") AS "core {index}"' for index in range(4))
    rates = (
        'non_negative_derivative(mean("network_sent_bytes"), 1s) AS "sent", '
        'non_negative_derivative(mean("network_received_bytes"), 1s) AS "received"'
    )
    last_online = Query(text=f'SELECT last("online") FROM "node" WHERE {RUN} AND {NODE} AND $timeFilter', alias="online", source=SAMPLES)
    disk = Query(text=f'SELECT last("disk_used") FROM "device" WHERE {RUN} AND {NODE} AND $timeFilter', alias="disk", source=SAMPLES)
    words = [
        {"type": "value", "options": {value: {"text": word, "color": colour} for value, (word, colour) in WORDS_ONLINE.items()}},
    ]
    return [
        row("$node", repeat="node"),
        stat(
            "State",
            last_online,
            description="Now.",
            unit="none",
            mappings=words,
            width=3,
            height=4,
            thresholds=(("red", None), ("green", 1)),
        ),
        stat("Disk used", disk, description="File system of the node's state.", thresholds=RED_UP, width=3, height=4, decimals=0, **SHARE),
        timeseries(
            "Processor",
            [sampled(f'mean("cpu") AS "all", {cores}', "device", where=BOTH)],
            description="Load of all cores, and of the first four.",
            width=6,
            **SHARE,
        ),
        timeseries(
            "Memory",
            [sampled('mean("memory_used_bytes") AS "device", mean("process_memory_bytes") AS "training"', "device", where=BOTH)],
            description="In use on the device, and by the training process.",
            unit="bytes",
            minimum=0,
            width=6,
            thresholds=GREEN_UP,
        ),
        timeseries(
            "Network", [sampled(rates, "device", where=BOTH)], description="All interfaces but loopback.", unit="Bps", minimum=0, width=6
        ),
    ]
