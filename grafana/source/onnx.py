"""The ONNX page: what does the model cost on each device, and which engine is served?

One measurement on a device under load says nothing: figures are medians over rounds, and a speed-up is shown only where
at least three rounds agree.
"""

from __future__ import annotations

from typing import Any

from federation.metric_types import STEADY_ROUNDS, STEADY_SPREAD
from federation.metrics import SERVER
from grafana.source.dashboard import dashboard, run_variable
from grafana.source.fields import NONE, Json, Property, as_text, cell, fixed, join, organize, override, special, thresholds, values
from grafana.source.palette import BAD, ENGINES, FIRST_LINE, GOOD, UNKNOWN, WARN
from grafana.source.panels import lines, panel, row, stat, table, timeline
from grafana.source.queries import RANGE, series, target

NAMES = {"torch": "PyTorch", "onnx": "ONNX", "onnx-int8": "int8"}
SERVED = {1: ("PyTorch", ENGINES["torch"]), 2: ("ONNX", ENGINES["onnx"]), 3: ("ONNX int8", ENGINES["onnx-int8"])}
NOT_MEASURED = "No engine was measured in this time."

SPREAD = '(percentile("speedup", 75) - percentile("speedup", 25)) / median("speedup")'


def build() -> Json:
    """Return the page."""
    panels = [*_tiles(), _medians(), _against_pytorch(), *_curves()]
    panels += [
        row("Engine served, over time", 20, [_served()]),
        row("Slowest images, conversion, size", 21, _rest()),
    ]
    description = "What does the model cost on each device, and which engine is served?"
    return dashboard("onnx", "FedMQ ONNX", description, panels, [run_variable()])


def _of(engine: str) -> str:
    return f"\"engine\" = '{engine}' AND {RANGE}"


def _steady(engine: str, selected: str, group: str = ' GROUP BY "node"') -> str:
    """Return a query of the nodes' median speed-ups that enough rounds agree on."""
    each = f'SELECT median("speedup") AS "m", count("speedup") AS "n", {SPREAD} AS "s" FROM "inference" WHERE {_of(engine)} GROUP BY "node"'
    agreed = f'SELECT "m" FROM ({each}) WHERE "n" >= {STEADY_ROUNDS} AND "s" < {STEADY_SPREAD} GROUP BY "node"'
    return f"SELECT {selected} FROM ({agreed}) WHERE $timeFilter{group}"


def _tiles() -> list[Json]:
    def tile(title: str, query: str, x: int, **more: Any) -> Json:
        return stat(title, [series(query)], x, **{"transformations": [], "fields": "", "noValue": "Not measured", **more})

    faster = thresholds((WARN, None), (GOOD, 1))
    few = f"Fewer than {STEADY_ROUNDS} rounds agree"
    agreed = f"Of the nodes on which at least {STEADY_ROUNDS} rounds agree, so that nothing measured under load counts."
    slowest = f'SELECT median("p50_ms") AS "m" FROM "inference" WHERE "is_current" = 1 AND {RANGE} GROUP BY "node"'
    different = f'SELECT sum("different_predictions") / sum("num_images") FROM "inference" WHERE {_of("onnx-int8")}'
    middle = 'median("m")'
    return [
        tile(
            "ONNX Runtime is faster by",
            _steady("onnx", middle, ""),
            0,
            description=f"Median over rounds, and of those over nodes; above 1 ONNX Runtime wins. {agreed}",
            unit="suffix:×",
            decimals=1,
            thresholds=faster,
            noValue=few,
        ),
        tile(
            "In int8 by",
            _steady("onnx-int8", middle, ""),
            4,
            description=agreed,
            unit="suffix:×",
            decimals=1,
            thresholds=faster,
            noValue=few,
        ),
        tile(
            "Slowest device, one image",
            f'SELECT max("m") FROM ({slowest}) WHERE $timeFilter',
            8,
            description="The longest of the nodes: its median with the engine that it serves.",
            unit="ms",
            decimals=2,
            color=fixed(FIRST_LINE),
        ),
        tile(
            "Parity with PyTorch",
            f'SELECT min("parity") FROM "inference" WHERE {_of("onnx")}',
            12,
            description="ONNX float32: every prediction was equal and the logits within 1e-4, in every round and on every node.",
            mappings=[values({0: ("✕ differs", BAD), 1: ("✓ equal in all", GOOD)})],
        ),
        tile(
            "Of another class in int8",
            different,
            16,
            unit="percentunit",
            decimals=2,
            thresholds=thresholds((GOOD, None), (WARN, 0.01), (BAD, 0.05)),
        ),
        tile(
            "No engine made",
            f'SELECT sum("failed") FROM "inference" WHERE {RANGE}',
            20,
            description="Rounds of nodes in which an engine could not be made.",
            thresholds=thresholds((GOOD, None), (WARN, 1)),
            noValue="0",
        ),
    ]


def _by_node(
    queries: list[Json], title: str, place: tuple[int, int, int, int], columns: list[str], overrides: list[Json], **more: Any
) -> Json:
    # Of a run recorded live before the server had a name, its rows have an empty one.
    server = [values({SERVER: ("server", "text")}), special("empty", "server")]
    return table(
        title,
        queries,
        place,
        transformations=[organize(["Time"]), join("node"), as_text("Served"), organize((), ["node", *columns], {"node": "Node"})],
        overrides=[override("Node", ("mappings", server), ("custom.width", 92)), *overrides],
        custom={"minWidth": 60},
        noValue="–",
        mappings=[NONE],
        **more,
    )


def _medians() -> Json:
    sources = ", ".join(
        f'(SELECT "is_current" * {number} AS "x" FROM "inference" WHERE "is_current" = 1 AND {_of(engine)} GROUP BY "node")'
        for number, engine in enumerate(NAMES, start=1)
    )
    queries = [target(f'SELECT last("x") AS "Served" FROM {sources} WHERE $timeFilter GROUP BY "node"', ref="served")]
    queries += [
        target(f'SELECT median("p50_ms") AS "{name}" FROM "inference" WHERE {_of(engine)} GROUP BY "node"', ref=name)
        for engine, name in NAMES.items()
    ]
    served: list[Property] = [("mappings", [values(SERVED), NONE]), *cell("color-background"), ("custom.align", "center")]
    bar: list[Property] = [("unit", "ms"), ("decimals", 3), ("min", 0)]
    overrides = [override("Served", *served, ("color", fixed(UNKNOWN)), ("custom.width", 95))]
    overrides += [override(name, *bar, ("color", fixed(ENGINES[engine])), *cell("gauge")) for engine, name in NAMES.items()]
    title = "One image: median over rounds"
    return _by_node(queries, title, (0, 3, 12, 9), ["Served", *NAMES.values()], overrides, fieldMinMax=True)


def _against_pytorch() -> Json:
    spread = f'SELECT {SPREAD} AS "{{}}", {{}} FROM "inference" WHERE {{}} GROUP BY "node"'
    queries = [
        target(_steady("onnx", 'last("m") AS "ONNX ×"'), ref="a"),
        target(spread.format("ONNX spread", 'min("parity") AS "Predictions"', _of("onnx")), ref="b"),
        target(_steady("onnx-int8", 'last("m") AS "int8 ×"'), ref="c"),
        target(spread.format("int8 spread", 'max("different_predictions") AS "int8 differs"', _of("onnx-int8")), ref="d"),
        target(f'SELECT count("p50_ms") AS "Rounds" FROM "inference" WHERE {_of("torch")} GROUP BY "node"', ref="e"),
        target(f'SELECT sum("failed") AS "Failed" FROM "inference" WHERE {RANGE} GROUP BY "node"', ref="f"),
    ]
    times: list[Property] = [("unit", "suffix:×"), ("decimals", 1), ("custom.align", "right"), ("custom.width", 78)]
    grey: list[Property] = [("color", fixed(UNKNOWN)), *cell("color-text")]
    spreads: list[Property] = [("displayName", "spread"), ("unit", "percentunit"), ("decimals", 0), ("custom.align", "right")]
    equal = values({1: ("✓ equal", GOOD), 0: ("✕ differ", BAD)})
    overrides = [
        override("ONNX ×", *times),
        override("int8 ×", *times),
        override("ONNX spread", *spreads, ("custom.width", 75), *grey),
        override("int8 spread", *spreads, ("custom.width", 75), *grey),
        override("Predictions", ("mappings", [equal, NONE]), *cell("color-text"), ("color", fixed(UNKNOWN)), ("custom.width", 95)),
        override("int8 differs", ("unit", "suffix:img"), ("decimals", 0), ("custom.width", 95)),
        override("Rounds", ("decimals", 0), ("custom.width", 70), *grey),
        override("Failed", *cell("color-text"), ("thresholds", thresholds((UNKNOWN, None), (WARN, 1))), ("custom.width", 70)),
    ]
    return _by_node(
        queries,
        "Against PyTorch: speed-up, its spread over rounds, predictions",
        (12, 3, 12, 9),
        ["ONNX ×", "ONNX spread", "int8 ×", "int8 spread", "Predictions", "int8 differs", "Failed", "Rounds"],
        overrides,
        description=f"Spread: interquartile range over median. No speed-up where fewer than {STEADY_ROUNDS} rounds were measured, or where "
        "they differ by more than half.",
    )


def _engine_colors() -> list[Json]:
    return [override(name, ("color", fixed(ENGINES[engine]))) for engine, name in NAMES.items()]


def _curves() -> list[Json]:
    mean = 'SELECT mean("accuracy") FROM "inference" WHERE {} GROUP BY time($__interval) fill(none)'
    return [
        lines(
            "One image with the served engine",
            [series(f'SELECT "p50_ms" FROM "inference" WHERE "is_current" = 1 AND {RANGE} GROUP BY "node"', "$tag_node")],
            (0, 12, 12, 8),
            gap_ms=True,
            points="always",
            overrides=_server_named(),
            unit="ms",
            min=0,
            noValue=NOT_MEASURED,
        ),
        lines(
            "Accuracy by engine, mean of the nodes",
            [series(mean.format(_of(engine)), name) for engine, name in NAMES.items()],
            (12, 12, 12, 8),
            gap_ms=True,
            overrides=_engine_colors(),
            unit="percentunit",
            interval="1m",
            noValue=NOT_MEASURED,
        ),
    ]


def _server_named() -> list[Json]:
    return [override(SERVER, ("displayName", "server"))]


def _served() -> Json:
    sources = ", ".join(
        f'(SELECT "is_current" * {number} AS "x" FROM "inference" WHERE "is_current" = 1 AND {_of(engine)} GROUP BY "node")'
        for number, engine in enumerate(NAMES, start=1)
    )
    query = f'SELECT last("x") FROM {sources} WHERE $timeFilter GROUP BY time($__interval), "node" fill(none)'
    place = (0, 21, 24, 14)
    return timeline("Engine served", [series(query, "$tag_node")], place, SERVED, overrides=_server_named(), noValue=NOT_MEASURED)


def _rest() -> list[Json]:
    p99 = 'SELECT median("p99_ms") FROM "inference" WHERE {} GROUP BY time($__interval) fill(none)'
    convert = f'SELECT max("convert_seconds") FROM "inference" WHERE {_of("onnx")} GROUP BY time($__interval), "node" fill(none)'
    sizes = {
        "orientation": "horizontal",
        "displayMode": "basic",
        "showUnfilled": True,
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "minVizHeight": 10,
        "minVizWidth": 0,
    }
    return [
        lines(
            "Slowest of a hundred images (p99), median of the nodes",
            [series(p99.format(_of(engine)), name) for engine, name in NAMES.items()],
            (0, 22, 24, 8),
            gap_ms=True,
            overrides=_engine_colors(),
            unit="ms",
            interval="1m",
            min=0,
            noValue=NOT_MEASURED,
        ),
        panel(
            "bargauge",
            "Size of the model",
            [series(f'SELECT last("model_bytes") FROM "inference" WHERE {_of(engine)}', name) for engine, name in NAMES.items()],
            (0, 30, 8, 6),
            options=sizes,
            overrides=_engine_colors(),
            unit="bytes",
            min=0,
            noValue="Not measured",
        ),
        lines(
            "Conversion to ONNX",
            [series(convert, "$tag_node")],
            (8, 30, 16, 6),
            gap_ms=True,
            overrides=_server_named(),
            unit="s",
            interval="1m",
            noValue=NOT_MEASURED,
        ),
    ]
