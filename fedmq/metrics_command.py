"""`fedmq metrics`: what is measured, and filling a database from a run that was made without one."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from federation.environment import Environment, read_environment
from federation.errors import DataError, FedMQError, SettingsError
from federation.metric_schema import MEASUREMENTS, markdown_table
from fedmq.console import EXIT_FAILED, JsonOption, err, out, print_json, print_table, sentences

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
    url: Annotated[str | None, typer.Option(help="InfluxDB's address, HOST:PORT; default FEDMQ_INFLUX_URL.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File of InfluxDB's token; default FEDMQ_INFLUX_TOKEN_FILE.")] = None,
    bucket: Annotated[str | None, typer.Option(help="Bucket; samples go to BUCKET_samples. Default FEDMQ_INFLUX_BUCKET or fedmq.")] = None,
    organisation: Annotated[str | None, typer.Option("--org", help="Organisation; default FEDMQ_INFLUX_ORG or fedmq.")] = None,
    name: Annotated[str | None, typer.Option("--as", help="Name of the run there; default its own.")] = None,
    keep_samples: Annotated[
        bool, typer.Option("--keep-samples", help="Be content with the hourly means of samples that are older than the bucket keeps.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a run's points to InfluxDB, as if it had been there. Doing so again changes nothing.

    Hourly means of its samples are written with them. Exit status 1: points were refused; their number and the reason are said.
    """
    from aggregator.database_address import DatabaseAddress
    from fedmq.journal_import import import_journal, is_kept_as_means

    with sentences():
        environment = read_environment(DatabaseEnvironment, os.environ)
        stated = url or environment.influx_url
        token_path = token_file or environment.influx_token_file
        if not stated or not token_path:
            raise SettingsError("say where the database is: --url and --token-file, or FEDMQ_INFLUX_URL and FEDMQ_INFLUX_TOKEN_FILE")
        address = DatabaseAddress(
            url=complete_url(stated),
            token=read_token(token_path),
            organisation=organisation or environment.influx_org,
            bucket=bucket or environment.influx_bucket,
        )
        imported = import_journal(_files(file), address, name=None if name is None else _checked_name(name))
    is_content = not imported.refused or (keep_samples and is_kept_as_means(imported))
    if as_json:
        figures = {
            "written": imported.num_written,
            "refused": imported.refused.total(),
            "reasons": dict(imported.refused),
            "hourly_means": imported.num_hourly_means,
            "skipped_lines": imported.num_skipped_lines,
            "requests": imported.num_requests,
            "renamed": imported.renamed,
        }
        print_json(figures)
    else:
        means = f", {imported.num_hourly_means} of them hourly means," if imported.num_hourly_means else ""
        out.print(f"wrote {imported.num_written} points{means} to {address.url}", markup=False)
        for old, new in imported.renamed.items():
            out.print(f"run {old} is {new} there", markup=False)
        for reason, count in imported.refused.items():
            err.print(f"{count} points refused: {reason}", markup=False)
        if imported.num_skipped_lines:
            err.print(f"{imported.num_skipped_lines} lines are no points", markup=False)
        if imported.refused and not is_content and is_kept_as_means(imported):
            err.print("their hourly means are there; with --keep-samples that is enough", markup=False)
    if not is_content:
        raise typer.Exit(EXIT_FAILED)


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


def complete_url(stated: str) -> str:
    """Return an address with its scheme: `localhost:8086` is meant as plain HTTP.

    Raises:
        SettingsError: it is of another scheme, or no address.
    """
    parts = urlsplit(stated if "://" in stated else f"http://{stated}")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SettingsError(f"--url: {stated!r} is not an address of InfluxDB: write http://HOST:PORT")
    return parts.geturl().rstrip("/")


def read_token(path: Path) -> str:
    """Return the token of a file.

    Raises:
        FedMQError: it can't be read.
        SettingsError: it is none.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FedMQError(f"--token-file: {path} can't be read: {error}") from None
    # It becomes a line of an HTTP header.
    if len(token.split()) != 1 or not (token.isascii() and token.isprintable()):
        raise SettingsError(f"--token-file: {path} must hold one token, on one line, of plain letters, digits and signs")
    return token


def _checked_name(name: str) -> str:
    pattern = MEASUREMENTS["run_summary"].tag_values("run")
    if pattern is None or not pattern.fullmatch(name):
        raise SettingsError(f"--as: {name!r} can't be a run's name: use small letters, digits, - and _")
    return name
