"""One pair of images and one running server for all container tests; every test begins the run it needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmq.enrolment import enrol_demo_nodes
from fedmq.revocation import BrokerAddress
from fedmq.site import Site, create_site
from tests.containers.stack import FEW_IMAGES, OVERRIDE, REPOSITORY, VERSION, Stack, docker, free_port, run_file_text, written
from tests.requirements import require

SERVER_NAME = "server.test"
BUILD_SECONDS = 900
NUM_FEW_IMAGES = 1200


@dataclass(slots=True, kw_only=True)
class Server:
    """The server's stack with its site."""

    site: Site
    stack: Stack
    folder: Path
    fleet: BrokerAddress
    observers: BrokerAddress
    up_seconds: float
    run: str = ""

    def start_run(self, run: str, **settings: Any) -> None:
        """End the run that goes on, and begin another with the same containers' volumes; returns when it is up."""
        services = ("aggregator", "demo-0", "demo-1", "demo-2")
        self.stack.compose("stop", "-t", "5", *services)
        self._abandon(self.run)
        self._choose(run, **settings)
        self.stack.compose("up", "-d", "--no-deps", *services)
        self.stack.wait_for_log("aggregator", "broker=connected")

    def _abandon(self, run: str) -> None:
        """Clear the retained state of a run that was not finished, or nodes would wait for it to be resumed."""
        password = (self.site.folder / "secrets" / "aggregator_password").read_text(encoding="utf-8")
        login = ("-h", "broker-inner", "-i", "operator", "-u", "aggregator", "-P", password)
        self.stack.compose("exec", "-T", "broker", "mosquitto_pub", *login, "-t", f"fedmq/v2/{run}/state", "-n", "-r", "-q", "1")

    def keep_running(self) -> None:
        """Have some run go on in the background, two of three nodes being enough."""
        if self.run != "background" or self.stack.states()["aggregator"]["State"] != "running":
            self.start_run("background", num_rounds=100_000, min_nodes=2, quorum=0.5)

    def assert_goes_on(self) -> None:
        """Check that two more rounds end."""
        done = written(self.stack.container("aggregator")).count(" round=")
        self.stack.wait_for_log("aggregator", " round=", count=done + 2, timeout_seconds=150)

    def summary(self, run: str) -> dict[str, Any]:
        """Return a finished run's summary.json, from the volume."""
        volume = f"{self.stack.project}_out:/out:ro"
        image = f"fedmq/aggregator:{VERSION}"
        summary: dict[str, Any] = json.loads(docker("run", "--rm", "-v", volume, "--user", "0", image, "cat", f"/out/{run}/summary.json"))
        return summary

    def inspections(self) -> dict[str, Any]:
        """Return service -> what the engine knows of its container, running or ended; without `volumes`, which is root for a moment."""
        states = self.stack.states()
        return {name: json.loads(docker("inspect", state["ID"]))[0] for name, state in states.items() if name != "volumes"}

    def _choose(self, run: str, **settings: Any) -> None:
        path = self.folder / f"{run}.toml"
        path.write_text(run_file_text(run, **settings), encoding="utf-8")
        path.chmod(0o644)
        self.stack.variables |= {"RUN": run, "RUN_FILE": str(path)}
        self.run = run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run these tests last, in their random order, and those on the running server last of all.

    Its containers then load the machine beside no other test, and are taken down after the last test that uses them.
    """
    here = Path(__file__).parent
    items.sort(key=lambda item: (here in item.path.parents, "server" in getattr(item, "fixturenames", ())))


@pytest.fixture(scope="session")
def engine() -> Path:
    return require("docker")


@pytest.fixture(scope="session")
def images(engine: Path) -> None:  # noqa: ARG001 - needed
    """Both images, built from wheels because a build here reaches no index for PyTorch's CPU build."""
    for script in (["scripts/airgap", "wheels"], ["scripts/images", "--local"]):
        result = subprocess.run(script, cwd=REPOSITORY, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
        assert result.returncode == 0, f"{script}: {(result.stdout + result.stderr)[-3000:]}"


@pytest.fixture(scope="session")
def server(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:  # noqa: ARG001 - built first
    folder = tmp_path_factory.mktemp("server")
    data = _data_folder(folder / "data")
    now = datetime.now(UTC)
    port, observer_port = free_port(), free_port()
    site = create_site(folder / "site", folder / ".env", name="hospital", hosts=[SERVER_NAME], port=port, now=now)
    enrol_demo_nodes(site, now=now)
    override = folder / "override.yml"
    override.write_text(OVERRIDE, encoding="utf-8")
    stack = Stack(
        project=f"fedmq-test-{os.getpid()}",
        files=[REPOSITORY / "docker-compose.yml", override],
        env_file=folder / ".env",
        profiles=["demo"],
        variables={"SITE_DIR": str(site.folder), "DATA_DIR": str(data), "OBSERVER_PORT": str(observer_port), "INFLUX_URL": ""},
    )
    server = Server(
        site=site,
        stack=stack,
        folder=folder,
        fleet=BrokerAddress(host="localhost", port=port),
        observers=BrokerAddress(host="localhost", port=observer_port),
        up_seconds=0.0,
    )
    server._choose("first", num_rounds=3, data="bloodmnist_half")
    try:
        started = time.monotonic()
        # Long enough before the run ends to be seen healthy: the aggregator leaves when its three rounds are done.
        stack.compose("up", "-d", "--wait", "--wait-timeout", "240")
        server.up_seconds = time.monotonic() - started
        assert stack.wait_exited("aggregator", timeout_seconds=200) == 0
        yield server
    finally:
        stack.down()
    assert stack.leftovers() == []


def _data_folder(folder: Path) -> Path:
    """Write the folder that the server mounts: `bloodmnist_half`, and the first of its images as a set of their own."""
    folder.mkdir(mode=0o755)
    whole = require("data") / "bloodmnist_half.npz"
    shutil.copy(whole, folder)
    with np.load(whole) as archive:
        np.savez(folder / f"{FEW_IMAGES}.npz", **{name: archive[name][:NUM_FEW_IMAGES] for name in archive.files})
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder
