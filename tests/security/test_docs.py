"""docs/deploy.md names every variable there is, and .env.example every one that Compose asks for."""

from __future__ import annotations

import re
from pathlib import Path

from federation.environment import VARIABLES

REPOSITORY = Path(__file__).resolve().parents[2]
COMPOSE_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)")


def _read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def test_every_variable_of_the_processes_is_in_the_table() -> None:
    text = _read("docs/deploy.md")
    missing = [f"| `{name}` | {meaning} |" for name, meaning in VARIABLES.items() if f"| `{name}` | {meaning} |" not in text]
    assert missing == []


def test_every_variable_of_compose_is_documented() -> None:
    text = _read("docs/deploy.md")
    for name in ("docker-compose.yml", "docker-compose.pi.yml", "docker-compose.serve.yml"):
        asked = set(COMPOSE_VARIABLE.findall(_read(name)))
        assert {variable for variable in asked if f"`{variable}`" not in text} == set()


def test_example_has_every_variable_of_the_server() -> None:
    example = set(re.findall(r"^#?([A-Z0-9_]+)=", _read(".env.example"), flags=re.MULTILINE))
    assert set(COMPOSE_VARIABLE.findall(_read("docker-compose.yml"))) == example
