"""scripts/airgap refuses what was damaged on the way, and loads what was not."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.containers.stack import REPOSITORY, docker

NAME = "fedmq/airgap-test:1"


def _load(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [REPOSITORY / "scripts/airgap", "load", folder], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )


def _write_sums(folder: Path) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  ./{path.relative_to(folder)}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def test_a_folder_that_is_no_bundle_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    assert "is it what scripts/airgap bundle wrote?" in _load(tmp_path).stderr
    images = tmp_path / "images"
    images.mkdir()
    (images / "edge.tar").write_bytes(b"an image")
    _write_sums(tmp_path)
    (images / "edge.tar").write_bytes(b"an imagE")
    damaged = _load(tmp_path)
    assert damaged.returncode == 1
    assert "was damaged on the way" in damaged.stderr


@pytest.mark.docker
@pytest.mark.usefixtures("engine")
def test_saved_images_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with tarfile.open(tmp_path / "root.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("empty"))
    docker("import", str(tmp_path / "root.tar"), NAME)
    docker("save", NAME, "-o", str(tmp_path / "images" / "small.tar"))
    docker("image", "rm", NAME)
    _write_sums(tmp_path)
    assert _load(tmp_path).returncode == 0
    assert docker("image", "ls", "-q", NAME) != ""
    docker("image", "rm", NAME)
