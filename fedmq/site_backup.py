"""`fedmq backup` and `fedmq restore`: a server's site, its `.env` and its volumes, in a folder of files that only their owner reads.

FOLDER/site.tgz       the site and .env: the authority's key and every password
FOLDER/VOLUME.tgz     a volume's files, with their owners
FOLDER/SHA256SUMS     as `sha256sum -c` reads it; written last
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import IO, Annotated

import typer

from federation.codec import file_digest
from federation.errors import FedMQError, SettingsError
from fedmq import console
from fedmq.console import JsonOption, print_json, sentences
from fedmq.site import open_site

VOLUMES = ("broker", "aggregator", "out", "influxdb", "influxdb-config", "grafana")
"""Of docker-compose.yml, but those of the demo's nodes."""

IMAGE = "eclipse-mosquitto:2.0.22"
"""Every server has it, and it has tar; no image of ours need be there yet."""

SITE_FILE, SUMS = "site.tgz", "SHA256SUMS"
TAR_FILE_CHANGED = 1
"""tar's exit status where a file grew while it was read: what runs is not stopped for a backup."""

FolderArgument = Annotated[Path, typer.Argument(help="The backup's folder.")]
SiteOption = Annotated[Path, typer.Option("--site", help="The site's folder.")]
ProjectOption = Annotated[str, typer.Option(help="The Compose project, whose name the volumes begin with.")]


class BackupError(FedMQError):
    """A backup could not be written or read."""


def backup(
    folder: FolderArgument, *, site: SiteOption = Path("site"), project: ProjectOption = "fedmq", as_json: JsonOption = False
) -> None:
    """Write a server's site, .env and volumes into a new folder, without stopping anything. Needs Docker."""
    with sentences():
        saved = write_backup(folder, site=site, env_file=Path(".env"), project=project)
    _say(
        folder, saved, "wrote {folder}: it holds the authority's key and every password, keep it as safe as them. Volumes: {names}", as_json
    )


def restore(
    folder: FolderArgument, *, site: SiteOption = Path("site"), project: ProjectOption = "fedmq", as_json: JsonOption = False
) -> None:
    """Bring back what `fedmq backup` wrote, on a machine that has none of it. Needs Docker. Overwrites nothing."""
    with sentences():
        restored = read_backup(folder, site=site, env_file=Path(".env"), project=project)
    _say(folder, restored, "restored {folder}; next: `docker compose up -d`. Volumes: {names}", as_json)


def write_backup(folder: Path, *, site: Path, env_file: Path, project: str) -> list[str]:
    """Write a backup; return the volumes in it.

    Raises:
        SettingsError: there is no site, or the folder exists.
        BackupError: Docker or a disk failed.
    """
    open_site(site)
    if not env_file.exists():
        raise SettingsError(f"{env_file} is missing: run this in the folder that holds it and {site}")
    try:
        folder.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        raise SettingsError(f"{folder} exists already: name a new folder") from None
    with _private(folder / SITE_FILE) as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.add(site, "site")
        archive.add(env_file, ".env")
    saved = [name for name in VOLUMES if _has_volume(f"{project}_{name}")]
    for name in saved:
        with _private(folder / f"{name}.tgz") as file:
            _tar(f"{project}_{name}:/v:ro", ["-c", "-z", "-C", "/v", "."], stdout=file, accepted=(0, TAR_FILE_CHANGED))
    names = [SITE_FILE, *(f"{name}.tgz" for name in saved)]
    with _private(folder / SUMS) as file:
        file.write("".join(f"{file_digest(folder / name)}  {name}\n" for name in names).encode())
    return saved


def read_backup(folder: Path, *, site: Path, env_file: Path, project: str) -> list[str]:
    """Bring a backup back; return the volumes that were in it.

    Raises:
        SettingsError: something of it is here already.
        BackupError: the backup is damaged, or Docker or a disk failed.
    """
    names = _checked(folder)
    volumes = [name.removesuffix(".tgz") for name in names if name != SITE_FILE]
    for path in (site, env_file):
        if path.exists():
            raise SettingsError(f"{path} is here already, and restore overwrites nothing: move it away")
    for name in volumes:
        if _has_volume(f"{project}_{name}"):
            raise SettingsError(f"volume {project}_{name} is here already: `docker compose down -v` deletes all of the project's")
    with tarfile.open(folder / SITE_FILE) as archive:
        # Owners are kept where this is root; the filter would drop them.
        for member in archive.getmembers():
            _place(archive, member, site, env_file)
    for name in volumes:
        labels = [f"--label=com.docker.compose.project={project}", f"--label=com.docker.compose.volume={name}"]
        _docker(["volume", "create", *labels, f"{project}_{name}"])
        with (folder / f"{name}.tgz").open("rb") as file:
            _tar(f"{project}_{name}:/v", ["-x", "-z", "-p", "-C", "/v"], stdin=file)
    return volumes


def _place(archive: tarfile.TarFile, member: tarfile.TarInfo, site: Path, env_file: Path) -> None:
    top, _, rest = member.name.partition("/")
    path = env_file if member.name == ".env" else site / rest
    if top not in {"site", ".env"} or ".." in Path(rest).parts or not (member.isdir() or member.isreg()):
        raise BackupError(f"{SITE_FILE} holds {member.name[:100]!r}, which no site holds")
    if member.isdir():
        path.mkdir(mode=0o700)
    else:
        content = archive.extractfile(member) or io.BytesIO()
        with _private(path) as file:
            file.write(content.read())
        path.chmod(member.mode & 0o644)
    if os.geteuid() == 0:
        os.chown(path, member.uid, member.gid)


def _checked(folder: Path) -> list[str]:
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except OSError:
        raise BackupError(f"{folder} is no whole backup: it has no {SUMS}") from None
    names = []
    for line in lines:
        digest, _, name = line.partition("  ")
        if name != SITE_FILE and name.removesuffix(".tgz") not in VOLUMES:
            raise BackupError(f"{folder / SUMS} names {name[:100]!r}, which no backup holds")
        if file_digest(folder / name) != digest:
            raise BackupError(f"{folder / name} is damaged: its SHA-256 is not the one in {SUMS}")
        names.append(name)
    return names


def _private(path: Path) -> IO[bytes]:
    """Create a file that only its owner reads, from its first byte on."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _has_volume(name: str) -> bool:
    return bool(_docker(["volume", "ls", "-q", "--filter", f"name=^{name}$"]).strip())


def _tar(
    volume: str, arguments: list[str], *, stdin: IO[bytes] | None = None, stdout: IO[bytes] | None = None, accepted: tuple[int, ...] = (0,)
) -> None:
    """Run tar as root in a container without a network: the volume's files belong to several users."""
    command = ["docker", "run", "--rm", "-i", "--user=0:0", "--network=none", f"--volume={volume}", "--entrypoint=tar", IMAGE, *arguments]
    ended = subprocess.run(
        command, stdin=stdin or subprocess.DEVNULL, stdout=stdout or subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    if ended.returncode not in accepted:
        raise BackupError(f"{volume}: tar failed: {ended.stderr.decode(errors='replace').strip()[-500:]}")


def _docker(arguments: list[str]) -> str:
    try:
        ended = subprocess.run(["docker", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BackupError("there is no program `docker` here: the server's volumes are Docker's") from None
    if ended.returncode:
        raise BackupError(f"docker {arguments[0]}: {ended.stderr.strip()[-500:]}")
    return ended.stdout


def _say(folder: Path, volumes: list[str], text: str, as_json: bool) -> None:  # noqa: FBT001 - the last of four, and named so
    if as_json:
        print_json({"folder": str(folder), "volumes": volumes})
    else:
        console.out.print(text.format(folder=folder, names=", ".join(volumes) or "none"), markup=False)
