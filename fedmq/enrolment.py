"""A site's nodes: who is enrolled, with which certificates, and the bundle that is carried to a device."""

from __future__ import annotations

import io
import sysconfig
import tarfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from federation.errors import SettingsError
from federation.settings import Name, describe_validation_error
from fedmq import certificates
from fedmq.certificates import Issued
from fedmq.site import AGGREGATOR, DEMO_NODES, IMAGE_VERSION, Site, is_reserved, make_folder, write_private

PI_COMPOSE_NAME = "docker-compose.pi.yml"
SERVE_COMPOSE_NAME = "docker-compose.serve.yml"
RECORD_NAME = "enrolment.json"

PI_USER = 1000
"""The first user of a Raspberry Pi OS, who will own the unpacked bundle and run the container."""

_NAME: TypeAdapter[str] = TypeAdapter(Name)


class IssuedCertificate(BaseModel):
    """A certificate this node was once given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    serial_number: Annotated[str, Field(pattern=r"^[0-9a-f]+$")]
    """Hexadecimal: JSON readers round numbers of 160 bits."""
    expires: datetime
    revoked: bool = False


class Enrolment(BaseModel):
    """`enrolment.json`: one node's certificates, the newest last."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    certificates: Annotated[tuple[IssuedCertificate, ...], Field(min_length=1)]

    @property
    def revoked(self) -> bool:
        """Whether the node may no longer connect."""
        return all(certificate.revoked for certificate in self.certificates)

    @property
    def expires(self) -> datetime:
        """When the newest certificate ends."""
        return self.certificates[-1].expires


def add_node(site: Site, name: str, *, now: datetime, days: int = certificates.CERTIFICATE_DAYS) -> Path:
    """Enrol a node, or one that was revoked anew.

    Returns:
        The bundle, a tar file: whoever holds it is this node.

    Raises:
        SettingsError: the name can't be a node's, or is enrolled already.
    """
    _check_name(name)
    former = read_enrolment(site, name)
    if former is not None and not former.revoked:
        raise SettingsError(
            f"node {name!r} is enrolled already: `fedmq node renew {name}` replaces its certificate, `fedmq node revoke {name}` ends it"
        )
    return _issue(site, name, former, now=now, days=days)


def renew_node(site: Site, name: str, *, now: datetime, days: int = certificates.CERTIFICATE_DAYS) -> Path:
    """Give an enrolled node a new certificate and signing key; the old certificate works until its own end.

    Returns:
        The new bundle.

    Raises:
        SettingsError: the node is not enrolled, or revoked.
    """
    return _issue(site, name, _enrolled(site, name), now=now, days=days)


def mark_revoked(site: Site, name: str) -> Enrolment:
    """Mark every certificate of a node as revoked and delete its bundle; `revocation.enforce` tells the broker.

    Revoking twice is no error, so that a call that was cut off can be made again.

    Raises:
        SettingsError: the node was never enrolled.
    """
    enrolment = read_enrolment(site, name)
    if enrolment is None:
        raise SettingsError(f"node {name!r} is not enrolled; `fedmq node list` shows who is")
    revoked = enrolment.model_copy(
        update={"certificates": tuple(entry.model_copy(update={"revoked": True}) for entry in enrolment.certificates)}
    )
    _write_enrolment(site, revoked)
    _bundle_path(site, name).unlink(missing_ok=True)
    return revoked


def enrolments(site: Site) -> list[Enrolment]:
    """Return every node ever enrolled, in name order."""
    found = (read_enrolment(site, path.parent.name) for path in sorted(site.folder.glob(f"nodes/*/{RECORD_NAME}")))
    return [enrolment for enrolment in found if enrolment is not None]


def revoked_serial_numbers(site: Site) -> list[int]:
    """Return the serial numbers of all revoked certificates."""
    return [int(entry.serial_number, 16) for node in enrolments(site) for entry in node.certificates if entry.revoked]


def read_enrolment(site: Site, name: str) -> Enrolment | None:
    """Return a node's record, or None if it was never enrolled.

    Raises:
        SettingsError: the record is damaged.
    """
    path = site.node_folder(name) / RECORD_NAME
    try:
        return Enrolment.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise SettingsError(describe_validation_error(error, source=str(path))) from None


def unpack_for_demo(site: Site, name: str, bundle: Path) -> None:
    """Move a demo node's bundle into the folder that `--profile demo` mounts."""
    folder = site.folder / "demo" / name
    make_folder(folder / "trusted_keys")
    with tarfile.open(bundle) as archive:
        for member in archive.getmembers():
            content = archive.extractfile(member)
            if content is not None:
                write_private(folder / Path(member.name).relative_to(name), content.read())
    bundle.unlink()


def _check_name(name: str) -> None:
    try:
        _NAME.validate_python(name)
    except ValidationError:
        raise SettingsError(f"node name {name!r}: use 1 to 63 of a-z, 0-9, '-' and '_', and begin with a letter or digit") from None
    if is_reserved(name):
        raise SettingsError(f"node name {name!r} is the broker's name for another user: choose another")


def _enrolled(site: Site, name: str) -> Enrolment:
    enrolment = read_enrolment(site, name)
    if enrolment is None:
        raise SettingsError(f"node {name!r} is not enrolled: `fedmq node add {name}` enrols it, `fedmq node list` shows who is")
    if enrolment.revoked:
        raise SettingsError(f"node {name!r} is revoked: `fedmq node add {name}` enrols it anew")
    return enrolment


def _issue(site: Site, name: str, former: Enrolment | None, *, now: datetime, days: int) -> Path:
    issued = certificates.issue_client_certificate(site.authority, name, now=now, days=days)
    signing = certificates.create_signing_pair()
    record = IssuedCertificate(
        serial_number=f"{certificates.serial_number(issued.certificate):x}", expires=certificates.expiry(issued.certificate)
    )
    make_folder(site.node_folder(name))
    # Recorded before the bundle exists: a certificate that nobody remembers could never be revoked.
    _write_enrolment(site, Enrolment(name=name, certificates=(*(former.certificates if former else ()), record)))
    _trust(site, name, signing.public)
    bundle = _bundle_path(site, name)
    write_private(bundle, _bundle(site, name, issued, signing.private, now=now))
    return bundle


def _trust(site: Site, name: str, public_key: bytes) -> None:
    """Append to `NAME.pub`, newest last: rounds signed with a former key must still be replayable."""
    path = site.folder / "trusted_keys" / f"{name}.pub"
    former = path.read_bytes() if path.exists() else b""
    write_private(path, former + public_key)


def _write_enrolment(site: Site, enrolment: Enrolment) -> None:
    write_private(site.node_folder(enrolment.name) / RECORD_NAME, enrolment.model_dump_json(indent=2).encode())


def _bundle_path(site: Site, name: str) -> Path:
    return site.node_folder(name) / f"{name}.tar"


def _bundle(site: Site, name: str, issued: Issued, signing_key: bytes, *, now: datetime) -> bytes:
    files: Mapping[str, bytes] = {
        "ca.crt": site.certificate_file.read_bytes(),
        "node.crt": issued.certificate,
        "node.key": issued.key,
        "signing.key": signing_key,
        "trusted_keys/aggregator.pub": (site.folder / "trusted_keys" / f"{AGGREGATOR}.pub").read_bytes(),
        ".env": _env_text(site, name).encode(),
        PI_COMPOSE_NAME: compose_template(PI_COMPOSE_NAME).read_bytes(),
        SERVE_COMPOSE_NAME: compose_template(SERVE_COMPOSE_NAME).read_bytes(),
        "README": _readme(name).encode(),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for file_name, content in files.items():
            member = tarfile.TarInfo(f"{name}/{file_name}")
            member.size, member.mode, member.mtime = len(content), 0o600, int(now.timestamp())
            member.uid = member.gid = PI_USER
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _env_text(site: Site, name: str) -> str:
    return "\n".join(
        [
            f"# Node {name}, enrolled at {site.record.name}; read by Docker Compose on the device.",
            f"NODE={name}",
            f"BROKER_HOST={site.record.hosts[0]}",
            f"BROKER_PORT={site.record.port}",
            "# This node's images: a folder of class sub-folders, or a folder that holds the .npz file named in DATA.",
            "IMAGES_DIR=",
            "# Empty: the folder itself. Else a file in it, such as images.npz.",
            "DATA=",
            "# Owner of these files (`id -u`, `id -g`): as whom the container runs.",
            f"SITE_UID={PI_USER}",
            f"SITE_GID={PI_USER}",
            f"FEDMQ_VERSION={IMAGE_VERSION}",
            "",
        ]
    )


def _readme(name: str) -> str:
    image = f"fedmq/edge-node:{IMAGE_VERSION}"
    lines = (
        f"1. Set IMAGES_DIR in .env to the folder of this device's images; they never leave it. These files are node {name}: keep them.",
        f"2. Get the image {image}: `scripts/airgap load FOLDER`, or `docker build -f edge_node/Dockerfile -t {image} .` in a clone.",
        f"3. Start it, now and after every boot: `docker compose -f {PI_COMPOSE_NAME} up -d`",
    )
    return "\n".join(lines) + "\n"


def compose_template(name: str) -> Path:
    """Return a Compose file of the repository: beside this package in a checkout, else where a wheel puts it.

    Raises:
        SettingsError: it is in neither place.
    """
    places = (Path(__file__).resolve().parent.parent / name, Path(sysconfig.get_path("data")) / "share" / "fedmq" / name)
    for place in places:
        if place.is_file():
            return place
    raise SettingsError(f"{name} is in none of {', '.join(map(str, places))}: install FedMQ again")


def enrol_demo_nodes(site: Site, *, now: datetime) -> None:
    """Enrol the three nodes of `--profile demo` on this machine."""
    for name in DEMO_NODES:
        unpack_for_demo(site, name, add_node(site, name, now=now))
