"""What a test needs from outside the repository: image sets, a broker, a container engine, a database, a browser.

`require` skips the test with the way to get what is missing, or fails it where `FEDMQ_REQUIRE` names the
requirement (a comma-separated list, or `all`), so that a continuous-integration run can't pass by skipping.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

import pytest

from fedmq.mosquitto import find_mosquitto

Requirement: TypeAlias = Literal["data", "mosquitto", "ejabberd", "docker", "database", "browser"]

DOCKER_TIMEOUT_SECONDS = 20
"""A healthy engine answers in well under a second; a hung one must not hold up the tests."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


class Absent(Exception):  # noqa: N818 - a finding, not an error
    """What is missing, and how to get it."""


def require(name: Requirement) -> Path:
    """Return where the requirement is, or end the calling test.

    Returns:
        data: the folder of `.npz` image sets; mosquitto, ejabberd, docker, browser: the program; database: `influxd`.
    """
    try:
        return _FINDERS[name]()
    except Absent as absent:
        required = {entry.strip() for entry in os.environ.get("FEDMQ_REQUIRE", "").split(",")}
        if required & {name, "all"}:
            pytest.fail(f"FEDMQ_REQUIRE asks for {name}, but {absent}", pytrace=False)
        pytest.skip(f"needs {name}: {absent}")


def find(name: Requirement) -> Path:
    """Return where the requirement is, outside a test.

    Raises:
        Absent: it is not here; the text says how to get it.
    """
    return _FINDERS[name]()


def _data() -> Path:
    value = os.environ.get("FEDMQ_DATA_DIR")
    if not value:
        raise Absent("FEDMQ_DATA_DIR is not set: set it to a folder of .npz image sets")
    folder = Path(value)
    if not any(folder.glob("*.npz")):
        raise Absent(f"FEDMQ_DATA_DIR={value} holds no .npz file: set it to a folder of image sets")
    return folder.resolve()


def _mosquitto() -> Path:
    program = find_mosquitto()
    if program is None:
        raise Absent("there is no Mosquitto: install it, for example with `sudo apt-get install mosquitto`")
    return program


def _ejabberd() -> Path:
    program = _first_program("ejabberdctl")
    if program is None:
        raise Absent("there is no ejabberd, a second MQTT 5 broker: install it, on Debian with `sudo apt-get install ejabberd`")
    return program


def _docker() -> Path:
    program = shutil.which("docker")
    if program is None:
        raise Absent("there is no docker program: install Docker Engine with Compose v2")
    for arguments in (["info"], ["compose", "version"]):
        try:
            result = subprocess.run(
                [program, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DOCKER_TIMEOUT_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Absent(f"`docker {' '.join(arguments)}` does not answer ({error}): start the engine") from None
        if result.returncode != 0:
            lines = result.stderr.strip().splitlines() or ["no output"]
            raise Absent(f"`docker {' '.join(arguments)}` fails ({lines[-1]}): start the engine, install Compose v2")
    return Path(program)


def _database() -> Path:
    influxd = _first_program("influxd")
    if influxd is None or _first_program("nginx") is None:
        raise Absent("influxd or nginx is missing: install both, on Debian with `sudo apt-get install influxdb nginx-light`")
    return influxd


def _browser() -> Path:
    browser = _first_program(*BROWSERS)
    if browser is None:
        raise Absent("there is no Chromium or Chrome: install one, for example with `sudo apt-get install chromium`")
    return browser


def _first_program(*names: str) -> Path | None:
    for name in names:
        found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
        if found is not None:
            return Path(found)
    return None


_FINDERS: Mapping[Requirement, Callable[[], Path]] = MappingProxyType(
    {"data": _data, "mosquitto": _mosquitto, "ejabberd": _ejabberd, "docker": _docker, "database": _database, "browser": _browser}
)
