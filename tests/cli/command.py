"""Runs the command line inside the test's own process: what a shell would see, without a start of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.main
from typer.testing import CliRunner

from fedmq.cli import app


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command left behind."""

    status: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        return json.loads(self.stdout)


def fedmq(*arguments: str | Path, **variables: str) -> Outcome:
    """Run one command, with these `FEDMQ_` variables and no others."""
    cleared: dict[str, str | None] = {name: None for name in os.environ if name.startswith("FEDMQ_")}
    environ = cleared | {"COLUMNS": "300", "NO_COLOR": "1"} | variables
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=environ)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(status=result.exit_code, stdout=result.stdout, stderr=result.stderr)


def commands() -> dict[str, Any]:
    """Return every command by its full name, such as `data fetch`."""
    return dict(_walk(typer.main.get_command(app), ""))


def options_of(command: Any) -> dict[str, Any]:
    """Return a command's options by their longest name, `--help` left out."""
    return {max(entry.opts, key=len): entry for entry in command.params if entry.param_type_name == "option"}


def arguments_of(command: Any) -> list[str]:
    """Return the names of a command's arguments, in capitals as its usage line shows them."""
    return [entry.name.upper() for entry in command.params if entry.param_type_name == "argument"]


def _walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for child, inner in command.commands.items():
            yield from _walk(inner, f"{name} {child}".strip())
    else:
        yield name, command
