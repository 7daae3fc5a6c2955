"""The page of the server: is the plumbing well?"""

from __future__ import annotations

from typing import Any

from grafana.source.dashboard import dashboard, run_variable, state_tile
from grafana.source.devices import GONE, NO_HOUR
from grafana.source.fields import Json, Property, between, fixed, override, special, thresholds, values
from grafana.source.palette import BAD, FIRST_LINE, GOOD, THIRD_LINE, UNKNOWN, WARN
from grafana.source.panels import alerts, lines, row, stat
from grafana.source.queries import FRESH, RANGE, RUN, SAMPLES, series

BROKER_SECONDS = 60
"""The broker's figures come every ten seconds: after six missing ones it is not heard."""

YOUNG_SECONDS = 300
"""A broker that has been up for less was just restarted."""


def build() -> Json:
    """Return the page."""
    panels = [state_tile(), *_tiles(), alerts("What is wrong now, in any run", (0, 3, 8, 16)), *_figures()]
    panels += [row("Disk, memory, what the broker keeps", 19, _kept()), row("Hourly means, kept for ever", 20, _hourly())]
    return dashboard("server", "FedMQ Server", "Is the plumbing well?", panels, [run_variable()])


def _last(field: str, measurement: str = "broker") -> str:
    return f'SELECT last("{field}") FROM "{measurement}" WHERE {RANGE} GROUP BY time($__interval) fill(null)'


def _rate(field: str, measurement: str = "broker") -> str:
    return f'SELECT non_negative_derivative(last("{field}"), 1s) FROM "{measurement}" WHERE {RANGE} GROUP BY time($__interval) fill(null)'


def _sample(query: str, name: str = "") -> Json:
    return series(query, name, SAMPLES)


def _colored(name: str, color: str, *properties: Property) -> Json:
    return override(name, ("color", fixed(color)), *properties)


def _tiles() -> list[Json]:
    def tile(title: str, query: str, x: int, **more: Any) -> Json:
        return stat(title, [_sample(query)], x, transformations=[], fields="", **more)

    none = values({0: ("none", GOOD)})
    heard = f"{RUN} AND time > ${{__to}}ms - {BROKER_SECONDS}s AND time <= ${{__to}}ms"
    dropped = f'SELECT non_negative_difference("messages_dropped") AS "d" FROM "broker" WHERE {RANGE}'
    lost = ("dropped_points", "rejected_points", "rejected_payloads")
    losses = ", ".join(f'non_negative_difference("{field}") AS "{field}"' for field in lost)
    total = " + ".join(f'sum("{field}")' for field in lost)
    return [
        tile(
            "Broker",
            f'SELECT last("uptime_seconds") FROM "broker" WHERE {heard}',
            4,
            color_mode="background",
            description="Not heard: no $SYS figures in the last minute of the chosen time; so it is for a run that has ended.",
            mappings=[
                special("null", "– Not heard", UNKNOWN),
                between(0, YOUNG_SECONDS, "! Just restarted", WARN),
                between(YOUNG_SECONDS, 1e12, "● Up", GOOD),
            ],
            noValue="– Not heard",
            color=fixed(UNKNOWN),
        ),
        tile(
            "Messages dropped",
            f'SELECT sum("d") FROM ({dropped}) WHERE $timeFilter',
            8,
            description="In the chosen time. Must be 0: a client was slower than its queue.",
            thresholds=thresholds((GOOD, None), (BAD, 1)),
            mappings=[none],
        ),
        tile(
            "Points waiting",
            f'SELECT last("waiting_bytes") FROM "telemetry" WHERE {FRESH}',
            12,
            description="For the database. –: nothing said in 2 minutes.",
            unit="bytes",
            decimals=0,
            thresholds=thresholds((GOOD, None), (WARN, 1e5), (BAD, 1e6)),
            mappings=[none],
        ),
        tile(
            "Points lost or refused",
            f'SELECT {total} FROM (SELECT {losses} FROM "telemetry" WHERE {RANGE}) WHERE $timeFilter',
            16,
            description="In the chosen time.",
            thresholds=thresholds((GOOD, None), (WARN, 1)),
            mappings=[none],
        ),
        tile(
            "Server's disk",
            f'SELECT last("disk_used") FROM "run" WHERE {FRESH}',
            20,
            description="Of the file system of the run's folder. –: nothing said in 2 minutes.",
            unit="percentunit",
            decimals=0,
            thresholds=thresholds((GOOD, None), (WARN, 0.8), (BAD, 0.9)),
        ),
    ]


def _figures() -> list[Json]:
    dropped = f'SELECT non_negative_difference(last("messages_dropped")) FROM "broker" WHERE {RANGE} GROUP BY time($__interval) fill(null)'
    dashes = ("custom.lineStyle", {"fill": "dash", "dash": [6, 6]})
    own_axis: list[Property] = [("unit", "bytes"), ("custom.axisPlacement", "right"), ("custom.fillOpacity", 20)]
    often: Json = {"interval": "20s", "min": 0, "noValue": GONE}
    return [
        lines(
            "Clients",
            [_sample(_last("clients_connected"), "connected"), _sample(_last("clients_total"), "with a session")],
            (8, 3, 8, 8),
            overrides=[_colored("connected", GOOD, ("custom.fillOpacity", 15)), _colored("with a session", UNKNOWN, dashes)],
            decimals=0,
            **often,
        ),
        lines(
            "Traffic of the broker",
            [_sample(_rate("bytes_received"), "received"), _sample(_rate("bytes_sent"), "sent")],
            (16, 3, 8, 8),
            overrides=[_colored("received", FIRST_LINE, ("custom.fillOpacity", 10)), _colored("sent", THIRD_LINE)],
            unit="Bps",
            **often,
        ),
        lines(
            "Messages queued for slow clients, dropped",
            [_sample(_last("queued_messages"), "queued"), _sample(dropped, "dropped")],
            (8, 11, 8, 8),
            overrides=[
                _colored("dropped", BAD, ("custom.drawStyle", "bars"), ("custom.fillOpacity", 80)),
                _colored("queued", WARN, ("custom.fillOpacity", 15)),
            ],
            decimals=0,
            **often,
        ),
        lines(
            "Telemetry",
            [
                _sample(_rate("recorded_points", "telemetry"), "recorded"),
                _sample(_rate("written_points", "telemetry"), "written"),
                _sample(_last("waiting_bytes", "telemetry"), "waiting"),
            ],
            (16, 11, 8, 8),
            gap_ms=150_000,
            overrides=[_colored("waiting", WARN, *own_axis), _colored("recorded", UNKNOWN), _colored("written", GOOD)],
            unit="suffix:points/s",
            interval="1m",
            min=0,
            noValue=GONE,
        ),
    ]


def _kept() -> list[Json]:
    def small(title: str, field: str, name: str, x: int, **more: Any) -> Json:
        shown: Json = {"fill": 12, "has_legend": False, "color": fixed(FIRST_LINE), "interval": "20s", "min": 0, "noValue": GONE}
        return lines(title, [_sample(_last(field), name)], (x, 20, 6, 7), **shown, **more)

    memory: list[Property] = [("unit", "bytes"), ("custom.axisPlacement", "right")]
    return [
        small("Retained messages", "retained_messages", "retained", 0, decimals=0),
        small("Retained and queued bytes", "stored_bytes", "stored", 6, unit="bytes"),
        lines(
            "Messages a second",
            [_sample(_rate("messages_received"), "received"), _sample(_rate("messages_sent"), "sent")],
            (12, 20, 6, 7),
            overrides=[_colored("received", FIRST_LINE), _colored("sent", THIRD_LINE)],
            unit="suffix:/s",
            interval="20s",
            min=0,
            noValue=GONE,
        ),
        lines(
            "Disk and memory of the server",
            [_sample(_last("disk_used", "run"), "disk"), _sample(_last("process_memory_bytes", "run"), "aggregator's memory")],
            (18, 20, 6, 7),
            gap_ms=150_000,
            overrides=[
                _colored("disk", FIRST_LINE, ("max", 1), ("custom.fillOpacity", 12)),
                _colored("aggregator's memory", THIRD_LINE, *memory),
            ],
            unit="percentunit",
            interval="1m",
            min=0,
            noValue=GONE,
        ),
    ]


def _hourly() -> list[Json]:
    def curve(title: str, field: str, name: str, x: int, **more: Any) -> Json:
        query = series(f'SELECT "{field}" FROM "broker_hourly" WHERE {RANGE}', name)
        shown: Json = {"gap_ms": True, "points": "always", "has_legend": False, "color": fixed(FIRST_LINE), "min": 0, "noValue": NO_HOUR}
        return lines(title, [query], (x, 21, 8, 7), **shown, **more)

    return [
        curve("Clients, hourly", "clients_connected", "connected", 0),
        curve("Retained and queued bytes, hourly", "stored_bytes", "stored", 8, unit="bytes"),
        curve("Queued messages, hourly", "queued_messages", "queued", 16),
    ]
