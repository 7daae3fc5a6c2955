"""A federation as Compose runs it: the shipped `__main__`s, their environment, their restart policies.

`python -m aggregator` with checkpoint, ONNX measurements, signatures and a real InfluxDB; `python -m edge_node` that is told no run and
finds it, trains on scikit-learn's digits, converts and measures. Each reaches the broker through a link of its own.
"""

from __future__ import annotations

import os
import signal
import time
import tomllib
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Self

import tomli_w

from tests.end_to_end.processes import clean_environment
from tests.faults.federation import AGGREGATOR, NODES, PARTS, RESTART_SECONDS, Federation, Part
from tests.faults.power_cut import cut_power
from tests.faults.protocol_step import parse_step
from tests.faults.starter import Started, Starter
from tests.telemetry.influx import InfluxServer

STOP_SECONDS = 5.0
"""SIGTERM ends every process within so long, whatever it is at, where it has a core to itself: half of what Docker grants by default."""

GIVE_UP_SECONDS = 30.0
"""After that a supervisor kills."""

MAX_LIVES = 15
"""More than any schedule takes: a process that is started again so often ends by itself each time."""

ALARMS = ("Traceback (most recent call last)", "terminate called", "Fatal Python error")
"""What no process writes, however it is ended."""

LEARNING: Mapping[str, Mapping[str, object]] = {
    "data": {"name": "digits"},
    "partition": {"scheme": "iid", "num_nodes": len(NODES)},
    "training": {"local_epochs": 1, "learning_rate": 0.02, "device": "cpu"},
}


@dataclass(slots=True, kw_only=True)
class ShippedPart(Part):
    """One service of the Compose file, with its restart policy."""

    process: Started | None = None  # type: ignore[assignment]
    steps: deque[str] = field(default_factory=deque)
    """How and at which protocol step each of its next lives ends: `kill before:ack:1`, `terminate received:plan:2`."""
    clock_offset_seconds: float = 0.0
    terminated_at: float | None = None
    """When SIGTERM was sent, on the monotonic clock; later, when it was frozen meanwhile."""
    is_stopped: bool = False
    """As by `docker stop`: it is not started again."""
    num_kills: int = 0
    """SIGKILLs that are ours."""
    stop_seconds: list[float] = field(default_factory=list)


class ShippedFederation(Federation):
    """One aggregator and three nodes as they are shipped; a context manager that ends them, and only them.

    Args:
        folder: disks, keys and logs.
        starter: starts the modules.
        influx: running; None leaves telemetry to metrics.jsonl.
        bucket: this run's, in the database.
        num_rounds: of the run.
        seed: of links and power cuts.
        rounds: round settings.
    """

    parts: dict[str, ShippedPart]  # type: ignore[assignment]

    def __init__(
        self,
        folder: Path,
        *,
        starter: Starter,
        influx: InfluxServer | None,
        bucket: str = "faults",
        num_rounds: int = 4,
        seed: int = 0,
        rounds: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(folder, num_rounds=num_rounds, seed=seed, rounds=rounds)
        self.parts = {name: ShippedPart(name=name) for name in PARTS}
        self.problems: list[str] = []
        """What was seen and must not be."""
        self.power_cuts: list[str] = []
        self.module_of = {AGGREGATOR: "aggregator"}
        self._starter = starter
        self._influx = influx
        self._bucket = bucket
        self._random = Random(seed)
        settings = self.read_run_file() | dict(LEARNING)
        self.run_file.write_text(tomli_w.dumps(settings), encoding="utf-8")
        (folder / "token").write_text("secret", encoding="utf-8")

    def __enter__(self) -> Self:
        """Start the broker and the links; make the database."""
        super().__enter__()
        for name, password in self.broker.passwords.items():
            file = self.folder / f"{name}.password"
            file.touch(mode=0o600)
            file.write_text(password, encoding="utf-8")
        if self._influx is not None:
            self._influx.create(self._bucket, f"{self._bucket}_samples")
        return self

    def read_run_file(self) -> dict[str, Any]:
        """Return the run's settings."""
        return tomllib.loads(self.run_file.read_text(encoding="utf-8"))

    def start_part(self, part: Part) -> None:
        """Start, or restart, one service; the protocol step at which it ends next is taken from its list."""
        assert isinstance(part, ShippedPart)
        link = self.proxies[part.name]
        link.step = None
        process = self._starter.start(self.module_of.get(part.name, "edge_node"), self.environment(part), self.log_file(part.name))
        part.process = process
        part.num_starts += 1
        part.restart_at = part.status = part.terminated_at = None
        if part.steps:
            how, _, step = part.steps.popleft().partition(" ")
            strike = partial(self._kill if how == "kill" else self._terminate, part, process)
            link.step = parse_step(step, strike, swallows=how == "kill")

    def environment(self, part: Part) -> dict[str, str]:
        """Return what Compose gives a service, and what tests/faults/instrument asks for."""
        assert isinstance(part, ShippedPart)
        ledger = self.folder / f"ledger-{part.name}"
        ledger.mkdir(exist_ok=True)
        shared = {
            "FEDMQ_BROKER_HOST": self.broker.host,
            "FEDMQ_BROKER_PORT": str(self.proxies[part.name].port),
            "FEDMQ_BROKER_USERNAME": part.name,
            "FEDMQ_BROKER_PASSWORD_FILE": str(self.folder / f"{part.name}.password"),
            "FEDMQ_RUN_FILE": str(self.run_file),
            "FEDMQ_STATE_DIR": str(self.folder / part.name),
            "FEDMQ_CACHE_DIR": str(self.folder / "cache"),
            "FEDMQ_SIGNING_KEY": str(self.folder / f"{part.name}.key"),
            "FEDMQ_TRUSTED_KEYS": str(self.folder / "trusted"),
            "FAULTS_LEDGER": str(ledger),
            "FAULTS_CLOCK_OFFSET_SECONDS": str(part.clock_offset_seconds),
        }
        if part.name != AGGREGATOR:
            # FEDMQ_RUN is empty, as Compose hands it to a device: whichever run is active.
            own = {"FEDMQ_RUN": "", "FEDMQ_NODE": part.name, "FEDMQ_PARTITION_INDEX": str(NODES.index(part.name)), "FEDMQ_CORES": "1"}
            return clean_environment(**shared, **own)
        own = {"FEDMQ_OUT_DIR": str(self.folder / "out"), "FEDMQ_RESUME": "1"}
        if self._influx is not None:
            own |= {"FEDMQ_INFLUX_URL": self._influx.url, "FEDMQ_INFLUX_TOKEN_FILE": str(self.folder / "token")}
            own["FEDMQ_INFLUX_BUCKET"] = self._bucket
        return clean_environment(**shared, **own)

    # --- what is done to a part -----------------------------------------------------------------

    def kill(self, name: str) -> None:
        """End a part with SIGKILL; it is started again."""
        self._kill(self.parts[name], self.parts[name].process)

    def terminate(self, name: str) -> None:
        """Send a part SIGTERM, as `docker restart` does; it is started again."""
        self._terminate(self.parts[name], self.parts[name].process)

    def _kill(self, part: ShippedPart, process: Started | None) -> None:
        """On any thread."""
        if process is not None and process is part.process and process.poll() is None:
            part.num_kills += 1
            process.kill()

    def _terminate(self, part: ShippedPart, process: Started | None) -> None:
        """On any thread."""
        if process is not None and process is part.process and process.poll() is None and part.terminated_at is None:
            part.terminated_at = time.monotonic()
            process.send_signal(signal.SIGTERM)

    def cut_power(self, name: str) -> None:
        """End a part as a power cut does, and take from its disk what was not synced."""
        part = self.parts[name]
        if part.process is None:
            return
        if part.process.poll() is None:
            part.num_kills += 1
            part.process.kill()
            part.process.wait(GIVE_UP_SECONDS)
        folders = [self.folder / name, *([self.folder / "out"] if name == AGGREGATOR else [])]
        done = cut_power([folder for folder in folders if folder.is_dir()], self.folder / f"ledger-{name}", self._random)
        self.power_cuts.append(f"{name} in round {self.round_number}: {'; '.join(done) or 'nothing was lost'}")

    # --- supervision ----------------------------------------------------------------------------

    def look_after(self) -> None:
        """Do what Compose does: start again what ended, unless it was told to or the run has finished."""
        now = time.monotonic()
        for part in self.parts.values():
            if part.restart_at is not None:
                if now >= part.restart_at:
                    self.start_part(part)
                continue
            if part.process is None or part.status is not None:
                continue
            status = part.process.poll()
            if status is None:
                self._hasten(part, now)
                continue
            self._judge(part, status, now)
            has_finished = part.name == AGGREGATOR and status == 0
            if part.is_stopped or has_finished:
                part.status = status
            elif part.num_starts >= MAX_LIVES:
                self.problems.append(f"{part.name} ended {part.num_starts} times, with status {status} at last")
                part.status = status
            else:
                part.restart_at = now + RESTART_SECONDS

    def _hasten(self, part: ShippedPart, now: float) -> None:
        if part.terminated_at is not None and now >= part.terminated_at + GIVE_UP_SECONDS and part.process is not None:
            self.problems.append(f"{part.name} did not end within {GIVE_UP_SECONDS:.0f} s of SIGTERM")
            part.num_kills += 1
            part.terminated_at = None
            part.process.kill()

    def _judge(self, part: ShippedPart, status: int, now: float) -> None:
        if status == -signal.SIGKILL and part.num_kills:
            part.num_kills -= 1
        elif status < 0:
            self.problems.append(f"{part.name} was ended by {signal.Signals(-status).name}")
        if part.terminated_at is not None:
            seconds = now - part.terminated_at
            part.stop_seconds.append(seconds)
            if seconds > STOP_SECONDS * _busyness():
                self.problems.append(f"{part.name} took {seconds:.1f} s to end after SIGTERM")
            allowed = {0, 3} if part.name == AGGREGATOR else {0}
            if status not in {*allowed, -signal.SIGKILL}:
                self.problems.append(f"{part.name} ended with status {status} after SIGTERM")
        part.terminated_at = None

    @property
    def is_over(self) -> bool:
        """Whether the run has finished, or a process ends again and again."""
        return any(part.status is not None for part in self.parts.values())

    def stop_nodes(self, timeout_seconds: float = 60.0) -> None:
        """Stop every node for good, as `docker stop` does; what a schedule left of them is started first."""
        give_up_at = time.monotonic() + timeout_seconds
        nodes = [self.parts[name] for name in NODES if self.parts[name].num_starts]
        for part in nodes:
            part.is_stopped = True
            if part.restart_at is not None:
                part.restart_at, part.status = None, 0
            elif part.terminated_at is None:
                self.terminate(part.name)
        while any(part.status is None for part in nodes):
            assert time.monotonic() < give_up_at, f"the nodes did not stop\n{self.describe()}"
            self.look_after()
            time.sleep(0.02)

    def check_logs(self) -> None:
        """Note what no process may write."""
        for name, part in self.parts.items():
            log = self.log(name) if part.num_starts else ""
            self.problems += [f"{name} wrote {alarm!r}" for alarm in ALARMS if alarm in log]

    def count_points(self, measurement: str) -> int:
        """Return how many points of a measurement the database has."""
        assert self._influx is not None
        return self._influx.count(measurement, self._bucket)

    def describe(self, num_lines: int = 15) -> str:
        """Return what was seen, what was torn, and the ends of all logs."""
        facts = [*(f"problem: {text}" for text in self.problems), *(f"power cut: {text}" for text in self.power_cuts)]
        return "\n".join([*facts, super().describe(num_lines)])


def _busyness() -> float:
    """Return how many processes want each core of this machine, at least 1."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
