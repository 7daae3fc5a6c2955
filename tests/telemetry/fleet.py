"""A federation of real processes on a real broker, whose parts a test may kill and start again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from federation.settings import RunSettings
from fedmq.private_broker import AGGREGATOR, PrivateBroker

WAIT_SECONDS = 180.0
POLL_SECONDS = 0.05


class Fleet:
    """One aggregator and the nodes of a run; a context manager that ends what is left of them.

    Args:
        folder: everything of this fleet.
        broker: running, with the nodes' log-ins.
        settings: the run.
        influx_url: the database; None for none.
        variables: further environment variables for every process.
    """

    def __init__(
        self,
        folder: Path,
        broker: PrivateBroker,
        settings: RunSettings,
        *,
        influx_url: str | None = None,
        bucket: str = "fedmq",
        variables: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.out_dir = folder / "out"
        self.nodes = [f"node-{index}" for index in range(settings.partition.num_nodes)]
        self._folder = folder
        self._broker = broker
        self._run = settings.run
        run_file = folder / "run.toml"
        run_file.write_text(tomli_w.dumps(settings.model_dump(mode="json")), encoding="utf-8")
        self._shared = {
            "FEDMQ_BROKER_HOST": broker.host,
            "FEDMQ_BROKER_PORT": str(broker.port),
            "FEDMQ_RUN_FILE": str(run_file),
            "FEDMQ_CACHE_DIR": str(folder / "cache"),
            **(variables or {}),
        }
        self._database: dict[str, str] = {}
        if influx_url is not None:
            (folder / "token").write_text("secret", encoding="utf-8")
            token_file = str(folder / "token")
            self._database = {"FEDMQ_INFLUX_URL": influx_url, "FEDMQ_INFLUX_TOKEN_FILE": token_file, "FEDMQ_INFLUX_BUCKET": bucket}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Fleet:
        """Return the fleet; nothing runs yet."""
        return self

    def __exit__(self, *_error: object) -> None:
        """End what still runs."""
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()

    def start_aggregator(self, *, is_resuming: bool = False) -> None:
        """Start the aggregator, or one that takes up the run."""
        variables = {
            "FEDMQ_STATE_DIR": str(self._folder / "aggregator"),
            "FEDMQ_OUT_DIR": str(self.out_dir),
            "FEDMQ_RESUME": str(int(is_resuming)),
            **self._database,
        }
        self._start("aggregator", "aggregator", AGGREGATOR, variables)

    def start_nodes(self) -> None:
        """Start every node."""
        for index, node in enumerate(self.nodes):
            variables = {
                "FEDMQ_NODE": node,
                "FEDMQ_RUN": self._run,
                "FEDMQ_STATE_DIR": str(self._folder / node),
                "FEDMQ_PARTITION_INDEX": str(index),
            }
            self._start(node, "edge_node", node, variables)

    def kill(self, name: str) -> None:
        """End a process as a power cut would."""
        self._processes[name].send_signal(signal.SIGKILL)
        self._processes[name].wait()

    def freeze(self, name: str) -> None:
        """Stop a process as a machine that hangs does: its connections stay open, and it says nothing."""
        self._processes[name].send_signal(signal.SIGSTOP)

    def wait(self) -> None:
        """Wait until every process has ended by itself, with success."""
        self.wait_until(lambda: all(process.poll() is not None for process in self._processes.values()))
        statuses = {name: process.returncode for name, process in self._processes.items()}
        assert set(statuses.values()) == {0}, f"{statuses}\n{self.logs()}"

    def wait_until(self, condition: Callable[[], Any]) -> None:
        """Poll until a condition holds; a process that failed fails the test at once."""
        give_up_at = time.monotonic() + WAIT_SECONDS
        while not condition():
            failed = [name for name, process in self._processes.items() if process.poll() not in {None, 0, -signal.SIGKILL}]
            assert not failed, self.logs()
            assert time.monotonic() < give_up_at, self.logs()
            time.sleep(POLL_SECONDS)

    def logs(self) -> str:
        """Return the ends of all logs."""
        files = sorted(self._folder.glob("*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text(encoding='utf-8', errors='replace')[-1500:]}" for path in files)

    def _start(self, name: str, module: str, user: str, variables: Mapping[str, str]) -> None:
        password = self._folder / f"{user}.password"
        password.touch(mode=0o600)
        password.write_text(self._broker.passwords[user], encoding="utf-8")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("FEDMQ_")}
        login = {"FEDMQ_BROKER_USERNAME": user, "FEDMQ_BROKER_PASSWORD_FILE": str(password)}
        environment = {**inherited, "OMP_NUM_THREADS": "1", **self._shared, **login, **variables}
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", module], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
