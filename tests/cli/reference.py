"""The option tables of docs/cli.md, made from the commands themselves.

    python -m tests.cli.reference      writes the tables of docs/cli.md anew, and says which commands it lacks

Only the tables are written; sentences and examples are a person's.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from tests.cli.command import arguments_of, commands, options_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli.md"
HEAD = "| | default | |\n|---|---|---|\n"

_SECTION = re.compile(r"^## `fedmq ([a-z -]+?)`\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_TABLE = re.compile(r"^\| \| default \| \|\n(?:\|.*\n)+", re.MULTILINE)


def sections(page: str) -> dict[str, str]:
    """Return the text of each command's section, by the command's name."""
    return {match[1]: match[2] for match in _SECTION.finditer(page)}


def table_in(section: str) -> str:
    """Return the option table of a section; empty where there is none."""
    found = _TABLE.search(section)
    return found[0] if found else ""


def table_of(command: Any) -> str:
    """Return a command's arguments and options as a table."""
    arguments = [entry for entry in command.params if entry.param_type_name == "argument"]
    named = [*zip(arguments_of(command), arguments, strict=True), *options_of(command).items()]
    return HEAD + "".join(f"| `{name}` | {_default(entry)} | {_meaning(entry)} |\n" for name, entry in named)


def _default(entry: Any) -> str:
    if entry.required:
        return "required"
    # A flag is off unless it is given; options without a default of their own say in words what they fall back on.
    is_plain = isinstance(entry.default, str | int | float) and not isinstance(entry.default, bool)
    return f"`{entry.default}`" if is_plain or isinstance(entry.default, Path) else ""


def _meaning(entry: Any) -> str:
    return (getattr(entry, "help", None) or "").replace("|", "\\|")


def main() -> int:
    """Write the tables; return 1 if the page lacks a command."""
    page = PAGE.read_text(encoding="utf-8")
    known = commands()
    for name, section in sections(page).items():
        if name in known and table_in(section):
            page = page.replace(section, section.replace(table_in(section), table_of(known[name])))
    PAGE.write_text(page, encoding="utf-8")
    lacking = sorted(set(known) - set(sections(page)))
    for name in lacking:
        sys.stdout.write(f"docs/cli.md lacks a section `fedmq {name}`; its table:\n{table_of(known[name])}")
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
