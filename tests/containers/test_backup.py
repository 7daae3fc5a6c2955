"""`fedmq backup` and `fedmq restore`, tried by losing everything: site, .env and volumes."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fedmq.cli import app
from fedmq.enrolment import add_node
from fedmq.site import create_site
from fedmq.site_backup import IMAGE
from tests.containers.stack import docker
from tests.requirements import require

pytestmark = [pytest.mark.docker, pytest.mark.slow]


@pytest.fixture
def project() -> Iterator[str]:
    """Name a project of its own, with two volumes whose files belong to two users."""
    require("docker")
    name = f"fedmq-backup-{secrets.token_hex(4)}"
    docker("volume", "create", f"{name}_broker")
    docker("volume", "create", f"{name}_out")
    in_volume(f"{name}_broker", "echo retained >/v/broker.db; chmod 600 /v/broker.db; chown 10001:10001 /v/broker.db")
    in_volume(f"{name}_out", "mkdir -p /v/ward/rounds; echo round >/v/ward/rounds/000001.tar.zst; chown -R 1234:5678 /v/ward")
    yield name
    docker("volume", "rm", "-f", f"{name}_broker", f"{name}_out")


def in_volume(volume: str, script: str) -> str:
    return docker("run", "--rm", "--user=0:0", "-v", f"{volume}:/v", "--entrypoint=sh", IMAGE, "-c", script)


def contents(project: str) -> list[str]:
    look = "cd /v; find . -type f -exec stat -c '%n %a %u %g' {} +; find . -type f -exec cat {} +"
    return [in_volume(f"{project}_{name}", look) for name in ("broker", "out")]


def fedmq(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def files_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return every file below a folder, with its mode and owner."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, path.stat().st_uid, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_everything_lost_comes_back(project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    site = create_site(tmp_path / "site", tmp_path / ".env", name="hospital", hosts=["x.test"], now=datetime.now(UTC))
    add_node(site, "pi-1", now=datetime.now(UTC))
    before, held, settings = files_of(tmp_path / "site"), contents(project), Path(".env").read_text()
    os.umask(0o022)
    assert fedmq("backup", "kept", "--project", project).exit_code == 0
    for path in Path("kept").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(Path("kept").stat().st_mode) == 0o700
    assert fedmq("backup", "kept", "--project", project).exit_code == 2
    refused = fedmq("restore", "kept", "--project", project)
    assert refused.exit_code == 2
    assert "is here already" in refused.stderr

    shutil.rmtree("site")
    Path(".env").unlink()
    docker("volume", "rm", f"{project}_broker", f"{project}_out")
    restored = fedmq("restore", "kept", "--project", project)
    assert restored.exit_code == 0, restored.stderr
    assert files_of(tmp_path / "site") == before
    assert Path(".env").read_text() == settings
    assert contents(project) == held


def test_damaged_backup_is_refused_before_anything_is_written(project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    create_site(tmp_path / "site", tmp_path / ".env", name="hospital", hosts=["x.test"], now=datetime.now(UTC))
    assert fedmq("backup", "kept", "--project", project).exit_code == 0
    shutil.rmtree("site")
    Path(".env").unlink()
    with Path("kept/out.tgz").open("ab") as file:
        file.write(b"x")
    refused = fedmq("restore", "kept", "--project", project)
    assert refused.exit_code == 1
    assert "out.tgz is damaged" in refused.stderr
    assert not Path("site").exists()
