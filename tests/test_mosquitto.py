"""Finding and installing the broker program, with package managers that are small shell scripts of the test's own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from federation.errors import TransportError
from fedmq import mosquitto
from fedmq.mosquitto import ensure_mosquitto, find_mosquitto


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder programs are found in: it holds `env`, and what the test puts there."""
    folder = tmp_path / "programs"
    folder.mkdir()
    env = shutil.which("env")
    assert env is not None
    (folder / "env").symlink_to(env)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(mosquitto, "EXTRA_FOLDERS", (str(tmp_path / "sbin"),))
    return folder


def add_program(folder: Path, name: str, script: str) -> Path:
    program = folder / name
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def become(monkeypatch: pytest.MonkeyPatch, user_id: int) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: user_id)


def test_finds_a_broker_outside_path(programs: Path) -> None:
    assert find_mosquitto() is None
    program = add_program(programs.parent / "sbin", "mosquitto", "true")
    assert find_mosquitto() == program
    assert ensure_mosquitto() == program


def test_root_installs_it(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, 0)
    target = programs / "mosquitto"
    add_program(
        programs,
        "apt-get",
        f'[ "$1" = update ] || {{ [ "$DEBIAN_FRONTEND" = noninteractive ] && : > "{target}" && /bin/chmod +x "{target}"; }}',
    )
    assert ensure_mosquitto() == target


@pytest.mark.parametrize(
    ("manager", "advice"),
    [
        ("apt-get", "sudo apt-get update && sudo apt-get install mosquitto"),
        ("dnf", "sudo dnf install mosquitto"),
        ("apk", "sudo apk add mosquitto"),
    ],
)
@pytest.mark.parametrize("sudo_script", [None, "exit 1"])
def test_without_rights_it_says_the_line_to_type(
    programs: Path, monkeypatch: pytest.MonkeyPatch, manager: str, advice: str, sudo_script: str | None
) -> None:
    """With no sudo, and with one that would ask for a password; the package manager is not touched."""
    become(monkeypatch, 1000)
    trace = programs / "touched"
    add_program(programs, manager, f': > "{trace}"')
    if sudo_script:
        add_program(programs, "sudo", sudo_script)
    with pytest.raises(TransportError) as raised:
        ensure_mosquitto()
    assert str(raised.value).endswith(f"Type: {advice}")
    assert not trace.exists()


def test_passwordless_sudo_is_used(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, 1000)
    target = programs / "mosquitto"
    add_program(programs, "sudo", '[ "$1" = -n ] && shift && [ "$1" != true ] && exec "$@"; exit 0')
    add_program(programs, "dnf", f': > "{target}"; /bin/chmod +x "{target}"')
    assert ensure_mosquitto() == target


def test_brew_needs_no_root(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, 1000)
    target = programs / "mosquitto"
    add_program(programs, "brew", f': > "{target}"; /bin/chmod +x "{target}"')
    assert ensure_mosquitto() == target


def test_a_failed_installation_shows_its_last_words(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    become(monkeypatch, 0)
    add_program(programs, "apk", "echo 'no network' >&2; exit 100")
    with pytest.raises(TransportError, match=r"`apk add --quiet mosquitto` failed\. Type: sudo apk add mosquitto\nno network"):
        ensure_mosquitto()


@pytest.mark.usefixtures("programs")
def test_without_any_package_manager_it_says_where_to_get_it() -> None:
    with pytest.raises(TransportError, match="install version 2"):
        ensure_mosquitto()
