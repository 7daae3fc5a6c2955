"""Sends a run's rounds to InfluxDB again, out of their results: after the database was lost, or came later."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aggregator.database import Database
from aggregator.database_address import DatabaseAddress
from aggregator.record import summary_entry
from aggregator.round_points import points_of_result
from federation.environment import read_environment
from federation.errors import SettingsError
from federation.messages import RoundResult
from fedmq.metrics_command import DatabaseEnvironment, complete_url, read_token

if TYPE_CHECKING:
    from fedmq.run_source import RunRecords


def resend_points(results: Sequence[RoundResult], records: RunRecords, environ: Mapping[str, str]) -> int:
    """Write the points of rounds to the database that the environment names; return how many.

    A point that is there already is overwritten by itself.

    Raises:
        SettingsError: the environment names no database.
        DatabaseUnavailableError: it does not take them.
    """
    environment = read_environment(DatabaseEnvironment, environ)
    if not environment.influx_url or not environment.influx_token_file:
        raise SettingsError("--to-influx: set FEDMQ_INFLUX_URL and FEDMQ_INFLUX_TOKEN_FILE to say where the database is")
    address = DatabaseAddress(
        url=complete_url(environment.influx_url),
        token=read_token(environment.influx_token_file),
        organisation=environment.influx_org,
        bucket=environment.influx_bucket,
    )
    times = end_times(results, records.out_dir, now_ns=time.time_ns())
    num_rounds = records.settings.num_rounds if records.settings else results[-1].round_number
    database = Database(address)
    entries: list[dict[str, Any]] = []
    num_points = 0
    try:
        for result in results:
            entries.append(summary_entry(result, entries[-1] if entries else None))
            tags = {"run": result.run, "strategy": result.method}
            points = points_of_result(
                result,
                rounds=entries,
                num_rounds=num_rounds,
                class_names=records.class_names,
                tags=tags,
                time_ns=times[result.round_number],
            )
            num_points += len(points) - sum(database.write(points).values())
    finally:
        database.close()
    return num_points


def end_times(results: Sequence[RoundResult], out_dir: Path, *, now_ns: int) -> dict[int, int]:
    """Return when each round ended, in nanoseconds since 1970: as it says itself.

    Of a run older than that, as the run's folder says, else as if the last ended now.
    """
    moment = now_ns
    times = {}
    for result in reversed(results):
        times[result.round_number] = result.ended_ns or moment
        moment -= int(result.seconds * 1e9)
    if all(result.ended_ns for result in results):
        return times
    try:
        lines = (out_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return times
    for line in lines:
        try:
            point = json.loads(line)
            if point["measurement"] == "round" and (number := point["fields"]["round_number"]) in times:
                times[number] = point["time_ns"]
        except (ValueError, KeyError, TypeError):
            continue
    return times
