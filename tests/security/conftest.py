"""A site of its own in a temporary folder, and a real broker run by the script that Compose runs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedmq.revocation import BrokerAddress
from fedmq.site import Site, create_site
from tests.requirements import require

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return create_site(
        tmp_path / "site",
        tmp_path / ".env",
        name="hospital",
        hosts=["server.test", "192.0.2.1"],
        now=datetime.now(UTC),
        user=(os.getuid(), os.getgid()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningBroker:
    """The site's broker as a process of this machine, its listeners moved to free loopback ports."""

    process: subprocess.Popen[bytes]
    fleet: BrokerAddress
    inner: BrokerAddress
    observers: BrokerAddress
    log_file: Path

    @property
    def log(self) -> str:
        """What the broker has written so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")


@pytest.fixture
def broker(site: Site, tmp_path: Path) -> Iterator[RunningBroker]:
    with running_broker(site, tmp_path) as running:
        _wait_for(running.log_file, running.process, " running\n")
        yield running


@contextmanager
def running_broker(site: Site, tmp_path: Path, *, program: Path | None = None) -> Iterator[RunningBroker]:
    """Start the site's broker, which may not be ready yet; its data are in `tmp_path / "data"`. `program` is called mosquitto."""
    program = program or require("mosquitto")
    ports = {1883: _free_port(), 8883: _free_port(), 8884: _free_port()}
    config = tmp_path / "config"
    shutil.copytree(REPOSITORY / "broker", config)
    (tmp_path / "data").mkdir(exist_ok=True)
    text = (config / "server.conf").read_text(encoding="utf-8")
    for port, free in ports.items():
        text = re.sub(rf"^listener {port}$", f"listener {free} 127.0.0.1", text, flags=re.MULTILINE)
    for inside, outside in (("site", site.folder / "broker"), ("config", config), ("data", tmp_path / "data")):
        text = text.replace(f"/mosquitto/{inside}", str(outside))
    if os.geteuid() == 0:
        text = "user root\n" + text  # it would become the user `mosquitto`, who may not read this folder
    (config / "server.conf").write_text(text, encoding="utf-8")
    environment = os.environ | {
        "BROKER_CONFIG": str(config),
        "BROKER_SITE": str(site.folder / "broker"),
        "BROKER_RUN": str(tmp_path),
        "BROKER_SAVED": str(tmp_path / "data" / "broker.db"),
        "PATH": f"{program.parent}:{os.environ['PATH']}",
    }
    log_file = tmp_path / "broker.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen([config / "start"], env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        addresses = {port: BrokerAddress(host="localhost", port=free) for port, free in ports.items()}
        yield RunningBroker(process=process, fleet=addresses[8883], inner=addresses[1883], observers=addresses[8884], log_file=log_file)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@pytest.fixture
def unused_address() -> BrokerAddress:
    return BrokerAddress(host="localhost", port=_free_port())


def _wait_for(log_file: Path, process: subprocess.Popen[bytes], text: str) -> None:
    for _ in range(200):
        log = log_file.read_text(encoding="utf-8", errors="replace")
        if text in log:
            return
        assert process.poll() is None, log
        time.sleep(0.05)
    raise AssertionError(log)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
