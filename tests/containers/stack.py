"""Runs the shipped Compose files as a site would: own project names, own site folder, free ports, no metrics images."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
VERSION = "0.1.0"

OVERRIDE = """\
# No image of these two can be had without a container registry; everything else is as shipped.
services:
  influxdb: {profiles: [absent]}
  grafana: {profiles: [absent]}
"""

POLL_SECONDS = 0.5

FEW_IMAGES = "few_images"
"""A data set for runs whose accuracy does not matter: rounds of seconds."""


@dataclass(slots=True, kw_only=True)
class Stack:
    """One Compose project."""

    project: str
    files: Sequence[Path]
    env_file: Path
    profiles: Sequence[str] = ()
    folder: Path = REPOSITORY
    variables: dict[str, str] = field(default_factory=dict)

    def compose(self, *arguments: str, check: bool = True, timeout_seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Run `docker compose`; the variables overrule the .env file as a shell's would."""
        command = ["docker", "compose", "-p", self.project, "--project-directory", str(self.folder), "--env-file", str(self.env_file)]
        for file in self.files:
            command += ["-f", str(file)]
        for profile in self.profiles:
            command += ["--profile", profile]
        result = subprocess.run(
            [*command, *arguments],
            env=os.environ | self.variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
        assert not check or result.returncode == 0, f"{' '.join(arguments)}: {result.stderr[-3000:]}\n{self.logs()[-3000:]}"
        return result

    def logs(self, *services: str) -> str:
        """Return what the services have written."""
        return self.compose("logs", "--no-color", *services, check=False).stdout

    def container(self, service: str) -> str:
        """Return the identifier of a service's container."""
        return self.compose("ps", "-aq", service).stdout.strip()

    def states(self) -> Mapping[str, Mapping[str, Any]]:
        """Return service -> what `compose ps` says of its container."""
        lines = self.compose("ps", "-a", "--format", "json").stdout.splitlines()
        return {entry["Service"]: entry for entry in map(json.loads, lines)}

    def wait_exited(self, service: str, *, timeout_seconds: float) -> int:
        """Wait until a service has ended for good; return its exit status."""
        container, give_up = self.container(service), time.monotonic() + timeout_seconds
        while time.monotonic() < give_up:
            state = json.loads(docker("inspect", "--format", "{{json .State}}", container))
            if state["Status"] == "exited":
                return int(state["ExitCode"])
            time.sleep(POLL_SECONDS)
        raise AssertionError(f"{service} has not ended within {timeout_seconds:.0f} s:\n{self.logs(service)[-3000:]}")

    def wait_for_log(self, service: str, text: str, *, count: int = 1, timeout_seconds: float = 90) -> None:
        """Wait until a service has logged a text so many times."""
        container, give_up = self.container(service), time.monotonic() + timeout_seconds
        while written(container).count(text) < count:
            assert time.monotonic() < give_up, f"{service} did not log {text!r} {count} times:\n{self.logs(service)[-3000:]}"
            time.sleep(POLL_SECONDS)

    def down(self) -> None:
        """Remove containers, networks and volumes."""
        self.compose("down", "-v", "--remove-orphans", "-t", "5", check=False)

    def leftovers(self) -> list[str]:
        """Return the names of this project's containers, volumes and networks that still exist."""
        label = f"label=com.docker.compose.project={self.project}"
        commands = (["ps", "-aq"], ["volume", "ls", "-q"], ["network", "ls", "-q"])
        return [name for command in commands for name in docker(*command, "--filter", label).split()]


def written(container: str) -> str:
    """Return what a container has written; a tenth of what `docker compose logs` takes of a core, so fit for polling."""
    command = ["docker", "logs", container]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=True
    ).stdout


def docker(*arguments: str) -> str:
    """Run the docker program and return its output."""
    return subprocess.run(["docker", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=True).stdout


def free_port() -> int:
    """Return a TCP port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))  # noqa: S104 - as Docker will
        return int(probe.getsockname()[1])


def run_file_text(
    run: str, *, num_rounds: int, data: str = FEW_IMAGES, min_nodes: int = 3, local_epochs: int = 1, quorum: float = 1.0
) -> str:
    """Return a run file."""
    return f"""
run = "{run}"
num_rounds = {num_rounds}
[data]
name = "{data}"
[partition]
num_nodes = 3
[training]
local_epochs = {local_epochs}
[rounds]
min_nodes = {min_nodes}
quorum = {quorum}
grace_seconds = 5.0
deadline_seconds = 120.0
"""
