"""The commands of README's first screen exist and take the flags shown. CI and the container tests run them."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
import typer.main

from fedmq.cli import app

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.strip() for line in re.findall(r"^    (?=\S)(.*(?:scripts/|docker ).*)$", TEXT, re.MULTILINE)]


def test_the_two_commands_that_do_all_come_first() -> None:
    assert [shlex.split(command, comments=True) for command in COMMANDS[:2]] == [["scripts/demo"], ["scripts/test"]]


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_is_there_and_takes_its_flags(line: str) -> None:
    words = [word for word in shlex.split(line, comments=True) if not re.fullmatch(r"FEDMQ_\w+=.*", word)]
    program = words.pop(0)
    if program == "docker":
        assert words[0] == "compose"
        return
    assert os.access(ROOT / program, os.X_OK), f"{program} is not there"
    if program == "scripts/demo":
        words.insert(0, "demo")
    elif program != "scripts/fedmq":
        return
    if words == ["--help"]:
        return
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    with command.make_context(line, words):
        pass
