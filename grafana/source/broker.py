"""Dashboard 5: the broker, and the telemetry itself."""

from __future__ import annotations

from grafana.source.dashboard import dashboard, run_variable
from grafana.source.panels import RED_UP, RUN, SAMPLES, Json, Query, sampled, stat, text, timeseries

INTRODUCTION = """\
**The broker, by its own count** (`$SYS`, every 10 s), and the telemetry that fills these pages. *Dropped* must stay 0: a dropped
message is one a slow client's queue had no room for; it is sent again, and costs time. *Waiting* grows while the database is down
and shrinks when it is back."""


def build() -> Json:
    """Return the dashboard."""
    panels = [*_now(), *_traffic(), *_telemetry()]
    return dashboard("broker", "FedMQ 5: Broker", "The broker and the telemetry itself.", panels, [run_variable()], since="now-1h")


def _now() -> list[Json]:
    return [
        text(INTRODUCTION, height=2),
        stat("Clients connected", _last("clients_connected", "broker"), description="Now.", unit="none"),
        stat(
            "Messages dropped",
            _last("messages_dropped", "broker"),
            description="Since the broker's start.",
            unit="none",
            thresholds=(("green", None), ("red", 1)),
        ),
        stat("Retained messages", _last("retained_messages", "broker"), description="Now.", unit="none"),
        stat("Stored", _last("stored_bytes", "broker"), description="Payloads of retained and queued messages.", unit="bytes"),
        stat("Points waiting", _last("waiting_bytes", "telemetry"), description="Recorded, not yet in the database.", unit="bytes"),
        stat(
            "Server's disk",
            _last("disk_used", "run"),
            description="File system of the run's folder.",
            unit="percentunit",
            decimals=0,
            thresholds=RED_UP,
        ),
    ]


def _traffic() -> list[Json]:
    return [
        timeseries(
            "Clients",
            [sampled('max("clients_connected") AS "connected", max("clients_total") AS "with a session"', "broker")],
            description="Connected, and connected or with a session kept.",
            unit="none",
            minimum=0,
        ),
        timeseries(
            "Messages a second",
            [_rates("broker", received="messages_received", sent="messages_sent")],
            description="All packets, acknowledgements included.",
            unit="none",
            minimum=0,
        ),
        timeseries(
            "Bytes a second",
            [_rates("broker", received="bytes_received", sent="bytes_sent")],
            description="Through all listeners.",
            unit="Bps",
            minimum=0,
        ),
        timeseries(
            "Stored messages",
            [
                sampled(
                    'max("messages_stored") AS "stored", max("retained_messages") AS "retained", max("queued_messages") AS "queued"',
                    "broker",
                )
            ],
            description="Retained rounds, and what waits for a client.",
            unit="none",
            minimum=0,
        ),
        timeseries(
            "Stored bytes",
            [sampled('max("stored_bytes") AS "stored"', "broker")],
            description="Payloads in its memory.",
            unit="bytes",
            minimum=0,
        ),
        timeseries(
            "Dropped messages",
            [sampled('max("messages_dropped") AS "dropped"', "broker")],
            description="Since the broker's start.",
            unit="none",
            minimum=0,
        ),
    ]


def _telemetry() -> list[Json]:
    return [
        timeseries(
            "Telemetry",
            [
                sampled(
                    'max("recorded_points") AS "recorded", max("written_points") AS "written", max("rejected_points") AS "rejected"',
                    "telemetry",
                )
            ],
            description="Points since the aggregator's start.",
            unit="none",
            minimum=0,
        ),
        timeseries(
            "Payloads refused",
            [sampled('max("rejected_payloads") AS "refused"', "telemetry")],
            description="By the aggregator, whatever the topic.",
            unit="none",
            minimum=0,
        ),
    ]


def _last(field: str, measurement: str) -> Query:
    return Query(text=f'SELECT last("{field}") FROM "{measurement}" WHERE {RUN} AND $timeFilter', alias=field, source=SAMPLES)


def _rates(measurement: str, **fields: str) -> Query:
    columns = ", ".join(f'non_negative_derivative(mean("{field}"), 1s) AS "{name}"' for name, field in fields.items())
    return sampled(columns, measurement)
