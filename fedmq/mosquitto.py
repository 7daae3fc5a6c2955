"""Finds the Mosquitto broker program, or installs it with the system's package manager where that is allowed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from federation.errors import TransportError

EXTRA_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")
"""Where packages put the broker, outside an ordinary user's PATH."""

INSTALL_TIMEOUT_SECONDS = 600
"""A few megabytes over a slow link, plus refreshing the package lists."""

SUDO_TIMEOUT_SECONDS = 10
"""`sudo -n` never asks, so it answers at once; unless its directory service hangs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageManager:
    """How one package manager installs Mosquitto; `advice` is the line for a person to type."""

    program: str
    commands: tuple[tuple[str, ...], ...]
    needs_root: bool
    advice: str


PACKAGE_MANAGERS = (
    PackageManager(
        program="apt-get",
        commands=(
            ("apt-get", "update", "-qq"),
            ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq", "--no-install-recommends", "mosquitto"),
        ),
        needs_root=True,
        advice="sudo apt-get update && sudo apt-get install mosquitto",
    ),
    PackageManager(
        program="dnf",
        commands=(("dnf", "install", "-y", "-q", "mosquitto"),),
        needs_root=True,
        advice="sudo dnf install mosquitto",
    ),
    PackageManager(
        program="apk",
        commands=(("apk", "add", "--quiet", "mosquitto"),),
        needs_root=True,
        advice="sudo apk add mosquitto",
    ),
    PackageManager(
        program="brew",
        commands=(("brew", "install", "--quiet", "mosquitto"),),
        needs_root=False,
        advice="brew install mosquitto",
    ),
)


def find_mosquitto() -> Path | None:
    """Return the broker program on PATH or where packages put it, or None."""
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path=os.pathsep.join(EXTRA_FOLDERS))
    return Path(found) if found else None


def ensure_mosquitto() -> Path:
    """Return the broker program; install it first where it is missing and this user may.

    May means: as root, with a `sudo` that asks for no password, or with Homebrew. Where the package starts a
    system-wide broker of its own, that service is stopped again: FedMQ starts its own.

    Raises:
        TransportError: it is missing and could not be installed; the text holds the line to type.
    """
    found = find_mosquitto()
    if found is not None:
        return found
    manager = next((entry for entry in PACKAGE_MANAGERS if shutil.which(entry.program)), None)
    if manager is None:
        raise TransportError("Mosquitto is not installed: install version 2.0 or later from mosquitto.org, then try again")
    prefix = _rights_prefix(manager)
    if prefix is None:
        raise TransportError(f"Mosquitto is not installed, and this user may not install it. Type: {manager.advice}")
    for command in manager.commands:
        _install(manager, [*prefix, *command])
    if manager.needs_root and shutil.which("systemctl"):
        # Debian's package starts a broker on port 1883 that nobody asked for. No systemd running: nothing to stop.
        subprocess.run([*prefix, "systemctl", "disable", "--now", "mosquitto"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    found = find_mosquitto()
    if found is None:
        raise TransportError(
            f"Mosquitto was installed but its program is not on PATH nor in {', '.join(EXTRA_FOLDERS)}: add its folder to PATH"
        )
    return found


def _rights_prefix(manager: PackageManager) -> Sequence[str] | None:
    """Return what to put before an install command, or None where this user may not install."""
    if not manager.needs_root or os.geteuid() == 0:
        return []
    if shutil.which("sudo") is None:
        return None
    try:
        allowed = subprocess.run(
            ["sudo", "-n", "true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=SUDO_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    return ["sudo", "-n"] if allowed.returncode == 0 else None


def _install(manager: PackageManager, command: Sequence[str]) -> None:
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TransportError(f"Mosquitto is not installed, and installing it failed ({error}). Type: {manager.advice}") from None
    if result.returncode != 0:
        last_lines = "\n".join((result.stdout + result.stderr).strip().splitlines()[-5:])
        raise TransportError(f"Mosquitto is not installed, and `{' '.join(command)}` failed. Type: {manager.advice}\n{last_lines}")
