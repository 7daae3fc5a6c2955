"""A Mosquitto that, like version 2.1, empties the saved file when it can't start, whichever version is installed."""

from __future__ import annotations

import shlex
from pathlib import Path

from tests.requirements import require


def emptying_mosquitto(folder: Path, saved: Path) -> Path:
    """Write a program `mosquitto` into `folder` that runs the real one and, where that fails, replaces `saved`; return it.

    It writes the line `emptied` when it does.
    """
    folder.mkdir()
    program = folder / "mosquitto"
    real, kept, new = (shlex.quote(str(path)) for path in (require("mosquitto"), saved, saved.with_suffix(".new")))
    lines = (
        "#!/bin/sh",
        f'{real} "$@" &',
        "broker=$!",
        "trap 'kill -TERM $broker' TERM",
        "wait $broker; status=$?",
        "[ $status -lt 128 ] || { wait $broker; status=$?; }  # the trapped signal ended the first wait",
        f"[ $status -eq 0 ] || {{ echo emptied >&2; echo nothing >{new}; mv {new} {kept}; }}",
        "exit $status",
    )
    program.write_text("\n".join(lines) + "\n", encoding="utf-8")
    program.chmod(0o755)
    return program
