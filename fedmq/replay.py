"""`fedmq replay` and `fedmq rounds`: what happened in a run, repeated and compared, or with something changed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from federation.errors import ArchiveError, SettingsError
from fedmq import console
from fedmq.console import JsonOption, megabytes, print_json, print_table, sentences
from fedmq.options import HostOption, PasswordOption, PortOption, UserOption, command_environment

if TYPE_CHECKING:
    from aggregator.replay import Changed, WhatIf
    from federation.learning.algorithms import Algorithm
    from federation.messages import RoundResult
    from federation.settings import RunSettings
    from fedmq.options import CommandEnvironment
    from fedmq.run_source import Origin, RunRecords

RunArgument = Annotated[str, typer.Argument(help="The run's name; `fedmq status` lists those on a broker.")]
RunOrFolderArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's name, or its folder, such as out/demo-1.")]
OutOption = Annotated[Path | None, typer.Option(help="The run's folder, for its archive and settings; default out/RUN.")]
FromOption = Annotated[str, typer.Option("--from", help="broker, archive, or auto: the broker, and the archive for what it has cleared.")]


def replay(
    run: RunOrFolderArgument,
    *,
    round_numbers: Annotated[str, typer.Option("--round", help="N, A-B or all.")] = "all",
    origin: FromOption = "auto",
    out: OutOption = None,
    method: Annotated[str | None, typer.Option(help="What if: aggregate the same updates by this method instead.")] = None,
    options: Annotated[list[str] | None, typer.Option("--set", help="key=value of that method; may be repeated.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="What if: leave this node's updates out; may be repeated.")] = None,
    continue_as: Annotated[
        str | None, typer.Option("--continue", metavar="NAME", help="Start a new run of this name from the model the round ended with.")
    ] = None,
    to_influx: Annotated[bool, typer.Option("--to-influx", help="Send the rounds' metrics to InfluxDB again.")] = False,
    host: HostOption = None,
    port: PortOption = None,
    username: UserOption = None,
    password_file: PasswordOption = None,
    as_json: JsonOption = False,
) -> None:
    """Repeat a run's rounds from what was recorded and compare, bit for bit; exit status 0 only if all agree."""
    from fedmq.run_source import locate_run, open_records

    with sentences():
        environment = command_environment(broker_host=host, broker_port=port, broker_username=username, broker_password_file=password_file)
        change = _what_if(method, options or [], without or [])
        run, folder, source = locate_run(run, out, parse_origin(origin))
        with open_records(run, source, broker_address(environment), folder) as records:
            numbers = records.numbers(round_numbers)
            if change is not None:
                _show_changes(run, records, numbers, change, environment, as_json=as_json)
                return
            results = _verify(run, records, numbers, environment, is_whole=round_numbers == "all", as_json=as_json)
            if to_influx:
                from fedmq.resend import resend_points

                num_points = resend_points(results, records, os.environ)
                console.err.print(f"sent {num_points} points to InfluxDB", markup=False)
            if continue_as is not None:
                from fedmq.continuation import prepare_continuation

                folder = prepare_continuation(run, records, numbers[-1], continue_as, environment.trusted_keys)
                console.err.print(
                    f"{folder} holds run {continue_as}, beginning with the model that round {numbers[-1]} of {run} ended with; lead it:\n"
                    f"fedmq run {folder / 'run.toml'} --out {folder} --resume",
                    markup=False,
                )


def rounds(
    run: RunOrFolderArgument,
    *,
    origin: FromOption = "auto",
    out: OutOption = None,
    host: HostOption = None,
    port: PortOption = None,
    username: UserOption = None,
    password_file: PasswordOption = None,
    as_json: JsonOption = False,
) -> None:
    """List a run's finished rounds: what is on the broker, what in the archive, and how large."""
    from fedmq.round_list import list_rounds
    from fedmq.run_source import locate_run

    with sentences():
        environment = command_environment(broker_host=host, broker_port=port, broker_username=username, broker_password_file=password_file)
        run, folder, source = locate_run(run, out, parse_origin(origin))
        entries = list_rounds(run, source, broker_address(environment), folder)
    if as_json:
        print_json({"run": run, "rounds": entries})
        return
    rows = [[entry["round_number"], *(_size(entry[place]) for place in ("broker_bytes", "archive_bytes"))] for entry in entries]
    totals = [_size(sum(entry[place] or 0 for entry in entries)) for place in ("broker_bytes", "archive_bytes")]
    print_table(f"finished rounds of {run}", ("round", "MB on the broker", "MB in the archive"), [*rows, ["all", *totals]])


def _verify(
    run: str, records: RunRecords, numbers: list[int], environment: CommandEnvironment, *, is_whole: bool, as_json: bool
) -> list[RoundResult]:
    """Replay rounds and show them; the first that does not agree ends it, with exit status 1."""
    from aggregator.replay import Replay
    from fedmq.run_source import find_trusted_keys

    trusted_keys = find_trusted_keys(environment.trusted_keys, records.out_dir)
    results: list[RoundResult] = []
    fault = ""
    digests = set()
    started = time.monotonic()
    try:
        for record in Replay(run, records.source, trusted_keys).verify(numbers):
            digests.add(record.result_digest)
            results.append(record.result)
    except ArchiveError as error:
        fault = str(error)
    head = records.state.result_digest if records.state else None
    if is_whole and not fault and head is not None and head not in digests:
        fault = f"round {numbers[-1]}: result: the run's state names another newest result"
    entries = [_entry(result) for result in results]
    seconds = time.monotonic() - started
    if as_json:
        signatures = "checked" if trusted_keys else "not checked"
        print_json({"run": run, "rounds": entries, "agrees": not fault, "fault": fault, "signatures": signatures, "seconds": seconds})
    else:
        rows = [[entry[name] for name in ("round_number", "accepted", "accuracy")] + [entry["digest"][:16], "agrees"] for entry in entries]
        print_table(f"replay of {run}", ("round", "updates", "accuracy", "next global model", "verdict"), rows)
        console.out.print(f"{len(entries)} round(s) repeated bit for bit in {seconds:.1f} s", markup=False)
        if trusted_keys is None:
            console.out.print("signatures not checked: set FEDMQ_TRUSTED_KEYS to the site's folder of public keys", markup=False)
    if fault:
        console.err.print(f"does not agree: {fault}", style="red", markup=False)
        raise typer.Exit(console.EXIT_FAILED)
    return results


def _show_changes(
    run: str, records: RunRecords, numbers: list[int], change: WhatIf, environment: CommandEnvironment, *, as_json: bool
) -> None:
    """Show what another rule would have made of the rounds, beside what happened."""
    from aggregator.replay import Replay
    from fedmq.run_source import find_trusted_keys

    evaluate = build_evaluator_of(records.settings, environment)
    replayer = Replay(run, records.source, find_trusted_keys(environment.trusted_keys, records.out_dir))
    entries = [_changed_entry(changed) for changed in replayer.what_if(numbers, change, evaluate)]
    if as_json:
        print_json({"run": run, "method": change.method.name if change.method else None, "rounds": entries})
        return
    columns = ("round", "updates", "accuracy", "what if", "F1 macro", "what if", "loss", "what if", "model")
    rows = [
        [entry["round_number"], entry["updates"]]
        + [_score(entry[side][name]) for name in ("accuracy", "f1_macro", "loss") for side in ("recorded", "what_if")]
        + ["same" if entry["is_same"] else "differs"]
        for entry in entries
    ]
    print_table(f"{run}: what happened, and what if", columns, rows)


def build_evaluator_of(settings: RunSettings | None, environment: CommandEnvironment) -> Any:
    """Return what evaluates a global model of a run on its test images.

    Raises:
        SettingsError: the run's settings are not known.
    """
    if settings is None:
        raise SettingsError("the run's settings are neither on the broker nor in its folder: name the folder with --out")
    from aggregator.wiring import build_evaluator
    from federation.data import load_dataset

    return build_evaluator(settings, load_dataset(settings.data, data_dir=environment.data_dir, cache_dir=environment.cache_dir))


def _entry(result: RoundResult) -> dict[str, Any]:
    return {
        "round_number": result.round_number,
        "accepted": result.accepted,
        "aggregated": result.aggregated,
        "accuracy": _score(result.evaluation.accuracy if result.evaluation else None),
        "digest": result.next_global_digest,
    }


def _changed_entry(changed: Changed) -> dict[str, Any]:
    names = ("accuracy", "f1_macro", "f1_weighted", "auc", "loss")
    sides = {"recorded": changed.result.evaluation, "what_if": changed.evaluation}
    return {
        "round_number": changed.round_number,
        "updates": len(changed.nodes),
        "digest": changed.next_global_digest,
        "is_same": changed.next_global_digest == changed.result.next_global_digest,
        **{side: {name: getattr(evaluation, name) if evaluation else None for name in names} for side, evaluation in sides.items()},
    }


def _what_if(method: str | None, options: list[str], without: list[str]) -> WhatIf | None:
    """Return what is to be different, or None.

    Raises:
        SettingsError: the method or one of its options is unknown.
    """
    if method is None and not without:
        if options:
            raise SettingsError("--set changes the method of --method: name one")
        return None
    from aggregator.replay import WhatIf

    return WhatIf(method=_method(method, options) if method else None, without=frozenset(without))


def _method(name: str, options: list[str]) -> Algorithm.Settings:
    import tomllib

    from federation.learning.algorithms import check_method

    values: dict[str, Any] = {"name": name}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals:
            raise SettingsError(f"--set: {option!r} is not key=value")
        try:
            values[key.strip()] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = text
    try:
        return check_method(values)
    except ValueError as error:
        raise SettingsError(f"--method: {error}") from None


def parse_origin(text: str) -> Origin:
    """Return where rounds are to be read from.

    Raises:
        SettingsError: there is no such place.
    """
    from fedmq.run_source import Origin

    if text not in get_args(Origin):
        raise SettingsError(f"--from: {text!r} is none of {', '.join(get_args(Origin))}")
    return cast("Origin", text)


def broker_address(environment: CommandEnvironment) -> Any:
    """Return the broker that the environment names."""
    from federation.broker_address import BrokerAddress

    return BrokerAddress.from_environment(environment)


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _size(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else megabytes(num_bytes)
