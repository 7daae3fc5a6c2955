"""`fedmq check`: whether a run file is sound, and what it would run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from federation.errors import SettingsError
from federation.settings import RunSettings
from fedmq import console
from fedmq.console import JsonOption, print_json, print_table, sentences
from fedmq.options import load_settings, simulated


def check(
    run_file: Annotated[Path | None, typer.Argument(help="The TOML run file.")] = None,
    *,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of run files, for an editor, instead.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a run file and show what it sets; nothing is begun. With --json, every setting with its value."""
    with sentences():
        if schema:
            if run_file is not None:
                raise SettingsError(f"--schema is the same for every run file: leave out {run_file}")
            from fedmq.run_file_reference import json_schema

            print_json(json_schema())
            return
        if run_file is None:
            raise SettingsError("RUN_FILE is missing: name a run file (experiments/ holds ready ones), or --schema")
        settings = load_settings(run_file)
    if as_json:
        print_json(settings.model_dump(mode="json"))
        return
    console.out.print(f"{run_file} is a sound run file", markup=False, soft_wrap=True)
    defaults = dict(_leaves(RunSettings().model_dump(mode="json")))
    rows = [(key, value, defaults.get(key)) for key, value in _leaves(settings.model_dump(mode="json")) if value != defaults.get(key)]
    print_table("what differs from the defaults", ("setting", "value", "default"), rows)
    try:
        simulated(settings)
    except SettingsError as error:
        # No fault of a file for a fleet, whose nodes bring their own data.
        console.out.print(f"it can't be simulated on this machine as it is: {error}", markup=False, soft_wrap=True)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
