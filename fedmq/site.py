"""A site's folder: its certificate authority, the broker's and the CLI's certificates, passwords, and `.env`.

    site/
      site.json           name, addresses, ports
      ca/                 ca.crt, ca.key: whoever has the key can enrol nodes; keep a copy off this machine
      broker/             all the broker reads: ca.crt, server.crt, server.key, crl.pem, passwords
      secrets/            one password, token or key a file
      trusted_keys/       NAME.pub: the public keys that signatures are checked with
      nodes/NAME/         enrolment.json, and the bundle until it is carried to the device
      demo/NAME/          the unpacked bundles of `--profile demo`

Files are 0600, folders 0700, all owned by the folder's owner, as whom the containers run.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from federation.errors import SettingsError
from federation.settings import Name, describe_validation_error
from fedmq import certificates
from fedmq.broker_files import password_line
from fedmq.certificates import Issued

AGGREGATOR = "aggregator"
OBSERVER = "observer"

DATA_FOLDER = "data"
"""Beside `.env`: where Compose looks for data sets by name, unless `.env` says otherwise."""

RESERVED_NAMES = frozenset({AGGREGATOR, OBSERVER, "guard", "health", "broker", "server", "operator", "watch"})
"""Users of `broker/acl` that are no nodes, whose rights a node's certificate with such a CN would have; and the client identifiers of
the server's own, which the broker would take away from them: a node's identifier is its CN."""

RESERVED_ENDINGS = ("-aggregator", "-telemetry", "-finder")
"""Of the identifiers under which a run's processes connect."""

RESERVED_BEGINNINGS = ("observer-", "operator-", "watch-", "revoke-")
"""Of those under which commands connect."""


def is_reserved(name: str) -> bool:
    """Return whether a name is, or could be, another client's on the broker."""
    return name in RESERVED_NAMES or name.endswith(RESERVED_ENDINGS) or name.startswith(RESERVED_BEGINNINGS)


DEMO_NODES = ("demo-pi5-8gb", "demo-pi5-4gb", "demo-pi4b-2gb")
"""The thesis's three devices, as `--profile demo` of docker-compose.yml runs them."""

LOCAL_HOSTS = ("localhost", "127.0.0.1", "broker")
"""Always in the server's certificate: how this machine and the Compose network reach the broker."""

CONTAINER_USER = 10_001
"""Owner of a site that root made, so that no container runs as root."""

SECRET_BYTES = 24
"""192 random bits: nothing to guess, nothing to stretch."""

FOLDERS = ("ca", "broker", "secrets", "trusted_keys", "nodes", *(f"demo/{name}" for name in DEMO_NODES))

IMAGE_VERSION = "0.1.0"


class SiteRecord(BaseModel):
    """`site.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    hosts: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names and addresses of the server, the one nodes dial first."""
    port: Annotated[int, Field(ge=1, le=65_535)] = 8883
    """Of the fleet's listener: mutual TLS."""
    observer_port: Annotated[int, Field(ge=1, le=65_535)] = 8884
    """Of the onlookers' listener, on this machine alone: TLS and a password."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """An existing site folder and what `site.json` says of it."""

    folder: Path
    record: SiteRecord

    @property
    def authority(self) -> Issued:
        """The certificate authority, key included.

        Raises:
            SettingsError: its files are missing or unreadable for this user.
        """
        return _read_issued(self.folder / "ca" / "ca.crt", self.folder / "ca" / "ca.key")

    @property
    def certificate_file(self) -> Path:
        """The authority's certificate."""
        return self.folder / "ca" / "ca.crt"

    def node_folder(self, name: str) -> Path:
        """Return where a node's enrolment is kept."""
        return self.folder / "nodes" / name


def create_site(
    folder: Path, env_file: Path, *, name: str, hosts: Sequence[str], now: datetime, port: int = 8883, user: tuple[int, int] | None = None
) -> Site:
    """Make a site, whole or not at all.

    Args:
        folder: where it goes; must not exist.
        env_file: Compose's `.env`; must not exist.
        name: the site's name, shown in its authority's certificate.
        hosts: names and addresses under which nodes reach the server, the preferred one first.
        now: aware, UTC.
        port: the broker's port for the fleet.
        user: numeric user and group the containers run as; by default this user, or 10001 where this is root.

    Raises:
        SettingsError: something is in the way, or a host or name can't be used.
    """
    for path in (folder, env_file):
        if path.exists():
            raise SettingsError(
                f"{path} exists already and `fedmq init` never overwrites: all nodes would have to be enrolled again. "
                f"Move it away first; for a new server certificate alone: fedmq init --renew-server {' '.join(hosts)}"
            )
    record = _checked_record(name=name, hosts=hosts, port=port)
    owner = user or ((CONTAINER_USER, CONTAINER_USER) if os.geteuid() == 0 else (os.getuid(), os.getgid()))
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _own(draft, owner)
        _fill(Site(folder=draft, record=record), now=now)
        location = f"./{folder.name}" if folder.parent.resolve() == env_file.parent.resolve() else str(folder.resolve())
        write_private(env_file, _env_text(location, record, owner).encode(), owner=owner)
        env_file.chmod(0o644)  # nothing secret; whoever runs Compose reads it
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return Site(folder=folder, record=record)


def open_site(folder: Path) -> Site:
    """Return an existing site.

    Raises:
        SettingsError: there is none, or its record is damaged; the text says what to run.
    """
    path = folder / "site.json"
    try:
        return Site(folder=folder, record=SiteRecord.model_validate_json(path.read_bytes()))
    except FileNotFoundError:
        raise SettingsError(
            f"{folder} is no site: run `fedmq init HOST` with the server's name or address, or give --site FOLDER"
        ) from None
    except ValidationError as error:
        raise SettingsError(describe_validation_error(error, source=str(path))) from None
    except OSError as error:
        raise SettingsError(f"{path} can't be read ({error.strerror}): run this as the user who made the site") from None


def renew_server(site: Site, *, hosts: Sequence[str], now: datetime) -> Site:
    """Issue the broker a new certificate, for new names if given; nodes stay enrolled. The broker takes it up by itself."""
    record = _checked_record(name=site.record.name, hosts=hosts or site.record.hosts, port=site.record.port)
    renewed = Site(folder=site.folder, record=record)
    _write_server_certificate(renewed, site.authority, now=now)
    write_private(site.folder / "site.json", record.model_dump_json(indent=2).encode())
    return renewed


def write_private(path: Path, content: bytes, *, owner: tuple[int, int] | None = None) -> None:
    """Replace a file atomically, 0600, owned by its folder's owner (or `owner`)."""
    descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mkstemp creates 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _own(Path(draft), owner or _owner(path.parent))
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def make_folder(path: Path) -> None:
    """Create a folder, 0700, owned by its parent's owner; parents must exist."""
    path.mkdir(mode=0o700, exist_ok=True)
    _own(path, _owner(path.parent))


def _checked_record(*, name: str, hosts: Sequence[str], port: int) -> SiteRecord:
    try:
        return SiteRecord(name=name, hosts=tuple(dict.fromkeys(hosts)), port=port)
    except ValidationError as error:
        raise SettingsError(describe_validation_error(error, source="fedmq init")) from None


def _fill(site: Site, *, now: datetime) -> None:
    for name in FOLDERS:
        part = site.folder
        for level in name.split("/"):
            part = part / level
            make_folder(part)
    authority = certificates.create_authority(site.record.name, now=now)
    signing = certificates.create_signing_pair()
    passwords = {user: secrets.token_urlsafe(SECRET_BYTES) for user in (AGGREGATOR, OBSERVER)}
    files: Mapping[str, bytes] = MappingProxyType(
        {
            "ca/ca.crt": authority.certificate,
            "ca/ca.key": authority.key,
            "broker/ca.crt": authority.certificate,
            "broker/crl.pem": certificates.create_revocation_list(authority, [], now=now),
            "broker/passwords": "".join(password_line(user, password) for user, password in passwords.items()).encode(),
            "secrets/aggregator_password": passwords[AGGREGATOR].encode(),
            "secrets/observer_password": passwords[OBSERVER].encode(),
            "secrets/influxdb_password": secrets.token_urlsafe(SECRET_BYTES).encode(),
            "secrets/influxdb_token": secrets.token_urlsafe(SECRET_BYTES).encode(),
            "secrets/grafana_password": secrets.token_urlsafe(SECRET_BYTES).encode(),
            "secrets/aggregator_signing.key": signing.private,
            f"trusted_keys/{AGGREGATOR}.pub": signing.public,
            "site.json": site.record.model_dump_json(indent=2).encode(),
        }
    )
    for name, content in files.items():
        write_private(site.folder / name, content)
    _write_server_certificate(site, authority, now=now)


def _write_server_certificate(site: Site, authority: Issued, *, now: datetime) -> None:
    server = certificates.issue_server_certificate(authority, [*site.record.hosts, *LOCAL_HOSTS], now=now)
    # Key first: the broker reloads when the certificate changes, and must then find its key.
    write_private(site.folder / "broker" / "server.key", server.key)
    write_private(site.folder / "broker" / "server.crt", server.certificate)


def _env_text(location: str, record: SiteRecord, owner: tuple[int, int]) -> str:
    return "\n".join(
        [
            "# Made by `fedmq init`; read by Docker Compose on the server. No secret is in here: those are files of the site.",
            f"SITE_DIR={location}",
            "# User and group the containers run as: the owner of the site's files.",
            f"SITE_UID={owner[0]}",
            f"SITE_GID={owner[1]}",
            "# Where the fleet reaches the broker.",
            f"BROKER_PORT={record.port}",
            "# Where `fedmq status` and `fedmq node list` reach it, on this machine alone.",
            f"OBSERVER_PORT={record.observer_port}",
            f"FEDMQ_VERSION={IMAGE_VERSION}",
            "# The run file, and the folder whose data sets the aggregator tests the global model on.",
            "RUN_FILE=./experiments/compose_demo.toml",
            "# The name that the run file gives its run; its state and results get a folder of that name.",
            "RUN=demo",
            f"DATA_DIR=./{DATA_FOLDER}",
            "",
        ]
    )


def _read_issued(certificate: Path, key: Path) -> Issued:
    try:
        return Issued(certificate=certificate.read_bytes(), key=key.read_bytes())
    except OSError as error:
        raise SettingsError(
            f"{error.filename} can't be read ({error.strerror}): run this as the user who made the site, on the machine that has the key"
        ) from None


def _owner(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_uid, status.st_gid


def _own(path: Path, owner: tuple[int, int]) -> None:
    if os.geteuid() == 0:
        os.chown(path, *owner)
