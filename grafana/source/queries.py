"""The InfluxQL that pages share: targets, conditions, and the query that says what state a run is in."""

from __future__ import annotations

from collections.abc import Sequence

from grafana.source.fields import ALIVE, Json

ROUNDS: Json = {"type": "influxdb", "uid": "fedmq"}
"""Data source of what is kept for ever: runs, rounds, training, ONNX, events, hourly means."""

SAMPLES: Json = {"type": "influxdb", "uid": "fedmq-samples"}
"""Data source of samples: devices, nodes, broker."""

MIXED: Json = {"type": "datasource", "uid": "-- Mixed --"}

SILENT_SECONDS = 120
"""`federation.condition.RUN_SILENT_SECONDS`, which a test compares."""

RUN = "\"run\" = '$run'"
SINCE = RUN + " AND time >= 0${start}ms"
"""Of the run's present life; an empty `$start`, of an old journal, gives 0ms and no error."""

RANGE = RUN + " AND $timeFilter"
FRESH = RUN + f" AND time > ${{__to}}ms - {SILENT_SECONDS}s AND time <= ${{__to}}ms"
"""What is "now" at the end of the chosen time: anything older is shown as unknown."""

DURING = RUN + " AND time >= ${__from}ms AND time < ${__to}ms"
LABELLED = " AND \"label\" != ''"
STEP = "time(1s0${step}ms)"
"""A tenth of the run: compound durations are summed, so that an empty `$step` gives one second."""


def target(query: str, source: Json = ROUNDS, *, is_table: bool = True, alias: str = "", ref: str | None = None) -> Json:
    """Return one query of a panel."""
    shape = "table" if is_table else "time_series"
    asked: Json = {"datasource": dict(source), "query": query, "rawQuery": True, "resultFormat": shape, "alias": alias}
    return asked | ({"refId": ref} if ref else {})


def series(query: str, alias: str = "", source: Json = ROUNDS, ref: str | None = None) -> Json:
    """Return a query whose answer is drawn over time, or of which one number is shown."""
    return target(query, source, is_table=False, alias=alias, ref=ref)


def summary(field: str, where: str = RUN) -> Json:
    """Return a query of the last value of a field of `run_summary`."""
    return target(f'SELECT last("{field}") AS "{field}" FROM "run_summary" WHERE {where}')


def run_state(where: str = "", *, at: str = "now()", columns: Sequence[str] = (), fresh: Sequence[str] = ()) -> str:
    """Return a query of one row a run: its state, `ALIVE` more while a point came in the last two minutes.

    Args:
        where: a condition on tags; all runs without.
        at: as of when.
        columns: fields of `run_summary` whose last value is shown, or `expression AS "name"`.
        fresh: the same, but only of runs that are alive.
    """
    is_now = at == "now()"
    old = " AND ".join(part for part in (where, "" if is_now else f"time <= {at}") if part)
    new = " AND ".join(part for part in (where, f"time > {at} - {SILENT_SECONDS}s", "" if is_now else f"time <= {at}") if part)
    inner = "".join(f", {column}" if " AS " in column else f', last("{column}") AS "{column}"' for column in columns)
    # No such field: but a column that the first source lacks is null for all.
    inner += "".join(f', last("none") AS "{column}"' for column in fresh)
    alive = "".join(f', last("{column}") AS "{column}"' for column in fresh)
    names = [column.split(" AS ")[-1].strip('"') for column in columns]
    outer = "".join(f', last("{name}") AS "{name}"' for name in [*names, *fresh])
    first = f'SELECT last("state") AS "s"{inner} FROM "run_summary"{f" WHERE {old}" if old else ""} GROUP BY "run"'
    second = f'SELECT {ALIVE} * count("state") / count("state") AS "s"{alive} FROM "run_summary" WHERE {new} GROUP BY "run"'
    return f'SELECT sum("s") AS "state"{outer} FROM ({first}), ({second}) GROUP BY "run"'
