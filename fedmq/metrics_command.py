"""`fedmq metrics`: what is measured, and filling a database from a run that was made without one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from federation.environment import Environment, read_environment
from federation.errors import DataError, FedMQError, SettingsError
from federation.metric_schema import MEASUREMENTS, markdown_table
from fedmq.console import JsonOption, err, out, print_json, print_table, sentences

BATCH_POINTS = 4000
"""About a megabyte: the size InfluxDB's manual recommends."""

metrics_app = typer.Typer(name="metrics", help="What is measured, and where it goes.", no_args_is_help=True)


class DatabaseEnvironment(Environment):
    """What the import takes from the environment."""

    influx_url: str | None = None
    influx_token_file: Path | None = None
    influx_org: str = "fedmq"
    influx_bucket: str = "fedmq"


@metrics_app.command(name="import")
def import_file(
    file: Annotated[Path, typer.Argument(help="metrics.jsonl, or the folder of a run.")],
    *,
    url: Annotated[str | None, typer.Option(help="InfluxDB's address; default FEDMQ_INFLUX_URL.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File of InfluxDB's token; default FEDMQ_INFLUX_TOKEN_FILE.")] = None,
    bucket: Annotated[str | None, typer.Option(help="Bucket; samples go to BUCKET_samples. Default FEDMQ_INFLUX_BUCKET or fedmq.")] = None,
    organisation: Annotated[str | None, typer.Option("--org", help="Organisation; default FEDMQ_INFLUX_ORG or fedmq.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run's points to InfluxDB, as if it had been there. Doing so again changes nothing."""
    from aggregator.database import Database
    from aggregator.database_address import DatabaseAddress
    from fedmq.run_data import read_points

    with sentences():
        environment = read_environment(DatabaseEnvironment, os.environ)
        address = url or environment.influx_url
        token_path = token_file or environment.influx_token_file
        if not address or not token_path:
            raise SettingsError("say where the database is: --url and --token-file, or FEDMQ_INFLUX_URL and FEDMQ_INFLUX_TOKEN_FILE")
        files = _files(file)
        database = Database(
            DatabaseAddress(
                url=address,
                token=_read_token(token_path),
                organisation=organisation or environment.influx_org,
                bucket=bucket or environment.influx_bucket,
            )
        )
        num_points = num_refused = 0
        batch = []
        try:
            for point in read_points(files):
                batch.append(point)
                if len(batch) == BATCH_POINTS:
                    num_refused += database.write(batch)
                    num_points += len(batch)
                    batch.clear()
            num_refused += database.write(batch)
            num_points += len(batch)
        finally:
            database.close()
        num_lines = sum(_count_lines(path) for path in files)
        if num_points == 0:
            raise DataError(f"{file} holds no point of docs/metrics.md")
    if as_json:
        print_json({"written": num_points - num_refused, "refused": num_refused, "skipped_lines": num_lines - num_points})
        return
    out.print(f"wrote {num_points - num_refused} points to {address}", markup=False)
    if num_refused or num_lines > num_points:
        err.print(f"{num_refused} points refused by the database, {num_lines - num_points} lines that are no points", markup=False)


@metrics_app.command()
def fields(
    *,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of docs/metrics.md.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List every measurement, tag and field."""
    if markdown:
        sys.stdout.write(markdown_table())
        return
    rows = [(m.name, ", ".join(m.tags), f.name, f.kind, f.unit, f.meaning, m.sender) for m in MEASUREMENTS.values() for f in m.fields]
    columns = ("measurement", "tags", "field", "kind", "unit", "meaning", "sender")
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    print_table("metrics", ("field", "unit", "meaning"), [(f"{row[0]}.{row[2]}", row[4], row[5]) for row in rows])


def _files(path: Path) -> list[Path]:
    """Return the metrics files of a file or a run's folder, oldest first.

    Raises:
        DataError: there is none.
    """
    if path.is_dir():
        found = [entry for entry in (path / "metrics.1.jsonl", path / "metrics.jsonl") if entry.exists()]
        if not found:
            raise DataError(f"{path} holds no metrics.jsonl: name the folder of a run, as `fedmq demo` prints it")
        return found
    if not path.is_file():
        raise DataError(f"{path}: no such file; every run writes a metrics.jsonl into its folder")
    return [path]


def _read_token(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FedMQError(f"--token-file: {path} can't be read: {error}") from None


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
