"""A federation of real processes around a real Mosquitto, each behind a link of its own, that is kept alive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import tomli_w

from aggregator.archive import Archive
from aggregator.broker_rounds import BrokerRounds
from aggregator.replay import Replay
from federation.broker_address import BrokerAddress
from federation.messages import RoundResult
from federation.signing import TrustedKeys
from fedmq.private_broker import PrivateBroker
from fedmq.retained_reader import RetainedReader
from tests.faults.proxy import Proxy
from tests.replay.keys import make_keys
from tests.requirements import require

RUN = "faults"
AGGREGATOR = "aggregator"
NODES = ("node-0", "node-1", "node-2")
PARTS = (AGGREGATOR, *NODES)

POLL_SECONDS = 0.05
RESTART_SECONDS = 0.3
"""What a supervisor takes to start a dead process again."""


@dataclass(slots=True, kw_only=True)
class Part:
    """One process that is started again whenever it dies."""

    name: str
    process: subprocess.Popen[bytes] | None = None
    options: list[str] = field(default_factory=list)
    num_starts: int = 0
    restart_at: float | None = None
    status: int | None = None
    """How its last life ended, once it is over for good."""


class Federation:
    """One aggregator and three nodes; a context manager that ends them, and only them.

    Args:
        folder: disks, keys and logs.
        num_rounds: of the run.
        train_seconds: how long a node trains in each round.
        seed: of the links' jitter.
        rounds: round settings.
    """

    def __init__(
        self, folder: Path, *, num_rounds: int = 5, train_seconds: float = 0.1, seed: int = 0, rounds: Mapping[str, object] | None = None
    ) -> None:
        self.folder = folder
        self.num_rounds = num_rounds
        self.parts = {name: Part(name=name) for name in PARTS}
        self._seed = seed
        self._train_seconds = train_seconds
        folder.mkdir(parents=True, exist_ok=True)
        defaults: dict[str, object] = {"min_nodes": 3, "quorum": 1.0, "grace_seconds": 60.0, "deadline_seconds": 300.0}
        values = {"run": RUN, "num_rounds": num_rounds, "seed": 7, "rounds": {**defaults, **(rounds or {})}}
        self.run_file = folder / "run.toml"
        self.run_file.write_text(tomli_w.dumps(values), encoding="utf-8")
        self.broker = self.make_broker()
        self.proxies: dict[str, Proxy] = {}
        self._stack = ExitStack()

    def make_broker(self) -> PrivateBroker:
        """Return a broker that knows every part, not yet started; make the parts' keys."""
        make_keys(self.folder, *PARTS)
        return PrivateBroker(self.folder / "broker", nodes=NODES, program=require("mosquitto"))

    def __enter__(self) -> Self:
        """Start the broker and the links."""
        self._stack.enter_context(self.broker)
        for index, name in enumerate(PARTS):
            self.proxies[name] = self._stack.enter_context(Proxy(self.broker.port, seed=self._seed + index))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End everything."""
        for part in self.parts.values():
            if part.process is not None and part.process.poll() is None:
                part.process.kill()
                part.process.wait()
        self._stack.close()

    def start(self, names: Iterable[str] = PARTS) -> None:
        """Start processes."""
        for name in names:
            self.start_part(self.parts[name])

    def start_part(self, part: Part) -> None:
        """Start, or restart, one process."""
        variables = {"FEDMQ_FAULT_PASSWORD": self.broker.passwords[part.name], "OMP_NUM_THREADS": "1"}
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("FEDMQ_")}
        command = [sys.executable, "-m", "tests.faults.process", "aggregator" if part.name == AGGREGATOR else "node"]
        command += ["--name", part.name, "--folder", str(self.folder), "--run-file", str(self.run_file), "--keys", str(self.folder)]
        command += ["--port", str(self.proxies[part.name].port), "--train-seconds", str(self._train_seconds), *part.options]
        if part.name == AGGREGATOR and part.num_starts:
            command.append("--resume")
        with self.log_file(part.name).open("ab") as log:
            part.process = subprocess.Popen(
                command, env=inherited | variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        part.num_starts += 1
        part.restart_at = None
        part.status = None

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a part, if it lives."""
        process = self.parts[name].process
        if process is not None and process.poll() is None:
            process.send_signal(number)

    def look_after(self) -> None:
        """Start again what has been killed; remember how the others ended."""
        now = time.monotonic()
        for part in self.parts.values():
            if part.restart_at is not None and now >= part.restart_at:
                self.start_part(part)
            elif part.process is not None and part.restart_at is None and part.status is None:
                status = part.process.poll()
                if status == -signal.SIGKILL:
                    part.restart_at = now + RESTART_SECONDS
                elif status is not None:
                    part.status = status

    @property
    def is_over(self) -> bool:
        """Whether every part has ended for good, or one has failed."""
        statuses = [part.status for part in self.parts.values() if part.num_starts]
        return all(status is not None for status in statuses) or any(status not in {None, 0} for status in statuses)

    @property
    def position(self) -> Mapping[str, Any]:
        """Where the aggregator's checkpoint stands; empty before the first."""
        try:
            stored = json.loads((self.folder / "aggregator" / RUN / "checkpoint.json").read_bytes())
        except OSError:
            return {}
        position: Mapping[str, Any] = stored["position"]
        return position

    @property
    def round_number(self) -> int:
        """The open round; 0 before the first."""
        return int(self.position["round_number"]) if self.position.get("cohort") or self.position.get("finished") else 0

    def wait(self, timeout_seconds: float) -> None:
        """Look after the parts until all have ended.

        Raises:
            AssertionError: they did not, or one failed; the text holds the ends of the logs.
        """
        give_up_at = time.monotonic() + timeout_seconds
        while not self.is_over:
            assert time.monotonic() < give_up_at, f"not over after {timeout_seconds:.0f} s\n{self.describe()}"
            self.look_after()
            time.sleep(POLL_SECONDS)
        failed = [part.name for part in self.parts.values() if part.status not in {None, 0}]
        assert not failed, f"{', '.join(failed)} failed\n{self.describe()}"

    def describe(self, num_lines: int = 12) -> str:
        """Return the ends of all logs."""
        texts = []
        for part in self.parts.values():
            lines = self.log_file(part.name).read_text(encoding="utf-8", errors="replace").splitlines() if part.num_starts else []
            texts.append(f"--- {part.name} starts={part.num_starts} status={part.status}\n" + "\n".join(lines[-num_lines:]))
        return "\n".join(texts)

    def log_file(self, name: str) -> Path:
        """Return a part's log."""
        return self.folder / f"{name}.log"

    def log(self, name: str) -> str:
        """Return a part's whole log."""
        return self.log_file(name).read_text(encoding="utf-8", errors="replace")

    @property
    def summary(self) -> dict[str, Any]:
        """The run's summary."""
        summary: dict[str, Any] = json.loads((self.folder / "out" / "summary.json").read_bytes())
        return summary

    @property
    def global_digest(self) -> str:
        """Digest of the final model, as the summary says and the file is."""
        return str(self.summary["global_digest"])

    def replay(self, origin: str) -> list[RoundResult]:
        """Replay the whole run from the broker or the archive, signatures included; return every round's result."""
        numbers = range(1, self.num_rounds + 1)
        keys = TrustedKeys(self.folder / "trusted")
        if origin == "archive":
            source = Archive(self.folder / "out" / "rounds")
            return [record.result for record in Replay(RUN, source, keys).verify(numbers)]
        address = BrokerAddress(
            host=self.broker.host, port=self.broker.port, username="observer", password=self.broker.passwords["observer"]
        )
        with RetainedReader(address) as reader:
            broker = BrokerRounds(RUN, reader.read)
            records = [(record.result, record.result_digest) for record in Replay(RUN, broker, keys).verify(numbers)]
            assert broker.state().result_digest == records[-1][1]
            return [result for result, _ in records]
