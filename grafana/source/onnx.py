"""Dashboard 3: what the model costs on the device."""

from __future__ import annotations

from grafana.source.dashboard import dashboard, node_variable, run_variable
from grafana.source.panels import NODE, RUN, SHARE, Json, Query, select, stat, table, text, timeline, timeseries

INTRODUCTION = """**The model on each device, by engine.** *torch* is PyTorch in its faster memory format, *onnx* ONNX Runtime in float32,
*onnx-int8* the quantised model. Speed-up is PyTorch's time over the engine's: above 1 the engine wins. The device serves the engine
marked *current*. docs/onnx.md says how it is measured."""

BOTH = (RUN, NODE)
ONNX = '"engine" =~ /^onnx/'
PER_ENGINE = {"group_by": '"node", "engine"', "alias": "$tag_node $tag_engine"}
RATIO = (("red", None), ("yellow", 1.0), ("green", 1.2))


def build() -> Json:
    """Return the dashboard."""
    panels = [*_now(), *_latencies(), *_tables(), *_models()]
    return dashboard("onnx", "FedMQ 3: ONNX latency", "What the model costs on each device.", panels, [run_variable(), node_variable()])


def _now() -> list[Json]:
    return [
        text(INTRODUCTION),
        stat(
            "Speed-up of ONNX Runtime",
            Query(
                text=f'SELECT mean("speedup") FROM "inference" WHERE {RUN} AND {NODE} AND "engine" = \'onnx\' AND $timeFilter',
                alias="speed-up",
            ),
            description="Mean over the chosen nodes and rounds; the thesis measured 1.29 to 1.68.",
            unit="none",
            decimals=2,
            thresholds=RATIO,
            width=6,
        ),
        stat(
            "One image, ONNX Runtime",
            Query(
                text=f'SELECT median("p50_ms") FROM "inference" WHERE {RUN} AND {NODE} AND "engine" = \'onnx\' AND $timeFilter',
                alias="median",
            ),
            description="Median of the nodes' medians.",
            unit="ms",
            width=6,
        ),
        stat(
            "Largest difference from PyTorch",
            Query(
                text=f'SELECT max("max_abs_difference") FROM "inference" WHERE {RUN} AND {NODE} AND "engine" = \'onnx\' AND $timeFilter',
                alias="logits",
            ),
            description="Of any logit, float32.",
            unit="sci",
            thresholds=(("green", None), ("red", 1e-3)),
            width=6,
        ),
        stat(
            "Model",
            Query(
                text=f'SELECT last("model_bytes") FROM "inference" WHERE {RUN} AND {NODE} AND "engine" = \'onnx\' AND $timeFilter',
                alias="bytes",
            ),
            description="The ONNX file.",
            unit="bytes",
            width=6,
        ),
    ]


def _latencies() -> list[Json]:
    return [
        timeseries(
            "One image, median",
            [select('"p50_ms"', "inference", where=BOTH, **PER_ENGINE)],
            description="Latency of a single image.",
            unit="ms",
            minimum=0,
        ),
        timeseries(
            "Speed-up over PyTorch",
            [select('"speedup"', "inference", where=(*BOTH, ONNX), **PER_ENGINE)],
            description="Whole validation share.",
            unit="none",
            minimum=0,
        ),
        timeseries(
            "One image, slowest of twenty",
            [select('"p95_ms"', "inference", where=BOTH, **PER_ENGINE)],
            description="95th percentile.",
            unit="ms",
            minimum=0,
            width=8,
        ),
        timeseries(
            "One image, slowest of a hundred",
            [select('"p99_ms"', "inference", where=BOTH, **PER_ENGINE)],
            description="99th percentile.",
            unit="ms",
            minimum=0,
            width=8,
        ),
        timeline(
            "Same predictions as PyTorch",
            [select('"parity"', "inference", where=(*BOTH, ONNX), **PER_ENGINE)],
            words={"1": ("same", "green"), "0": ("differs", "red")},
            description="On the whole validation share; int8 may differ.",
            unit="none",
            width=8,
        ),
    ]


def _tables() -> list[Json]:
    last = ("p50_ms", "p95_ms", "p99_ms", "images_per_second", "speedup", "max_abs_difference", "model_bytes", "accuracy", "f1_macro")
    columns = ", ".join(f'last("{name}") AS "{name}"' for name in last)
    units = {
        "p50_ms": "ms",
        "p95_ms": "ms",
        "p99_ms": "ms",
        "model_bytes": "bytes",
        "accuracy": "percentunit",
        "f1_macro": "percentunit",
        "max_abs_difference": "sci",
    }
    overrides = [
        {"matcher": {"id": "byName", "options": name}, "properties": [{"id": "unit", "value": unit}]} for name, unit in units.items()
    ]
    latest = Query(
        text=f'SELECT {columns} FROM "inference" WHERE {RUN} AND {NODE} AND $timeFilter GROUP BY "node", "engine"', is_table=True
    )
    mean_seconds = Query(
        text='SELECT mean("seconds") AS "seconds", mean("engine_seconds") AS "engine alone", mean("speedup") AS "speed-up" '
        f'FROM "inference" WHERE {RUN} AND {NODE} AND $timeFilter GROUP BY "node", "engine"',
        is_table=True,
    )
    return [
        table(
            "Latest figures",
            [latest],
            description="Per node and engine: the thesis's Table 6 in the columns of accuracy.",
            unit="none",
            overrides=overrides,
            width=24,
        ),
        table("Mean over rounds", [mean_seconds], description="Validation share in seconds: the thesis's Table 7.", unit="s"),
    ]


def _models() -> list[Json]:
    return [
        timeseries(
            "Accuracy by engine",
            [select('"accuracy"', "inference", where=BOTH, **PER_ENGINE)],
            description="On each node's validation share.",
            width=12,
            **SHARE,
        ),
        timeseries(
            "Conversion to ONNX",
            [select('"convert_seconds"', "inference", where=(*BOTH, ONNX), **PER_ENGINE)],
            description="Global model to ONNX model; after the first round only the weights are replaced.",
            unit="s",
            minimum=0,
        ),
        timeline(
            "Engine the device serves",
            [select('"is_current"', "inference", where=BOTH, **PER_ENGINE)],
            words={"1": ("current", "green"), "0": ("not used", "gray")},
            description="Fastest within the accuracy budget.",
            unit="none",
        ),
    ]
