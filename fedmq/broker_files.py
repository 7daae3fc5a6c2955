"""Writes the files a private broker reads: configuration, access list and password file."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from federation.errors import SettingsError

SALT_BYTES = 12
"""Mosquitto 2.0 accepts no other length."""

HASH_ITERATIONS = 101
"""mosquitto_passwd's own number. Our passwords are 192 random bits, so stretching adds nothing but delay at log-in."""

CONFIGURATION_NAME = "mosquitto.conf"
ACCESS_LIST_NAME = "acl"


def shared_folder() -> Path:
    """Return the folder of the repository's broker files: beside this package in a checkout, else where a wheel puts it.

    Raises:
        SettingsError: neither is there.
    """
    checkout = Path(__file__).resolve().parent.parent / "broker"
    installed = [Path(sysconfig.get_path("data", scheme)) / "share" / "fedmq" / "broker" for scheme in _schemes()]
    for folder in (checkout, *installed):
        if (folder / CONFIGURATION_NAME).is_file() and (folder / ACCESS_LIST_NAME).is_file():
            return folder
    raise SettingsError(f"the broker's configuration is in none of {', '.join(map(str, (checkout, *installed)))}: install FedMQ again")


def write_private_broker(folder: Path, *, port: int, passwords: Mapping[str, str]) -> Path:
    """Write everything a broker on a loopback port needs into `folder`, readable by this user alone.

    Args:
        folder: exists; also holds what the broker stores.
        port: TCP port on 127.0.0.1.
        passwords: user name -> password.

    Returns:
        The configuration file to start Mosquitto with.
    """
    shared = shared_folder()
    _write_private(folder / ACCESS_LIST_NAME, (shared / ACCESS_LIST_NAME).read_text(encoding="utf-8"))
    _write_private(folder / "passwords", "".join(password_line(user, password) for user, password in sorted(passwords.items())))
    lines = [
        "",
        "# --- This place: added by fedmq/broker_files.py -----------------------------------------------------------",
        f"listener {port} 127.0.0.1",
        f"password_file {folder / 'passwords'}",
        f"acl_file {folder / ACCESS_LIST_NAME}",
        f"persistence_location {folder}/",
        "persistence_file broker.db",
        "log_dest stderr",
    ]
    if os.geteuid() == 0:
        # A broker started as root becomes the user `mosquitto`, who may not read this folder.
        lines.append("user root")
    configuration = folder / CONFIGURATION_NAME
    _write_private(configuration, (shared / CONFIGURATION_NAME).read_text(encoding="utf-8") + "\n".join(lines) + "\n")
    return configuration


def password_line(user: str, password: str) -> str:
    """Return a line of a Mosquitto password file: PBKDF2 with SHA-512, the `$7$` format of 2.0 and later.

    mosquitto_passwd does the same, but shows the password in the process list.
    """
    salt = secrets.token_bytes(SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, HASH_ITERATIONS)
    return f"{user}:$7${HASH_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}\n"


def _schemes() -> tuple[str, ...]:
    return (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
