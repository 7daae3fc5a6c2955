"""docs/cli.md says what the commands are: every one, every option, examples that parse, the exit statuses."""

from __future__ import annotations

import re
import shlex

import pytest
import typer.main

from fedmq import console
from fedmq.cli import app
from tests.cli.command import commands, options_of
from tests.cli.reference import PAGE, sections, table_in, table_of

COMMANDS = commands()
TEXT = PAGE.read_text(encoding="utf-8")
SECTIONS = sections(TEXT)
EXAMPLES = [line for block in re.findall(r"^```\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL) for line in block.splitlines()]


def test_every_command_has_a_section_and_no_other_has() -> None:
    assert sorted(SECTIONS) == sorted(COMMANDS), "write a section; `python -m tests.cli.reference` prints its table"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_section_has_the_commands_own_table(name: str) -> None:
    assert table_in(SECTIONS[name]) == table_of(COMMANDS[name]), "`python -m tests.cli.reference` writes the tables anew"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_section_has_an_example(name: str) -> None:
    assert f"```\nfedmq {name}" in SECTIONS[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does(name: str) -> None:
    assert [option for option, entry in options_of(COMMANDS[name]).items() if not entry.help] == []


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_parses(example: str) -> None:
    """Its command, options and values are taken; it is not run."""
    program, *words = shlex.split(example)
    assert program == "fedmq"
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    with command.make_context(example, words):
        pass


def test_exit_statuses_are_the_programs_own() -> None:
    statuses = [int(status) for status in re.findall(r"^\| (\d) \| ", TEXT, re.MULTILINE)]
    assert statuses == [0, console.EXIT_FAILED, console.EXIT_USAGE, console.EXIT_INTERRUPTED]
