"""The demo: a private Mosquitto, one aggregator process and N edge-node processes on this machine."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import FrameType

import tomli_w

from federation.data import load_dataset
from federation.errors import DataError, FedMQError
from federation.partition import split
from federation.settings import DataSettings, RunSettings
from fedmq.certificates import create_signing_pair
from fedmq.console import err
from fedmq.figures import draw_curves
from fedmq.private_broker import AGGREGATOR, PrivateBroker
from fedmq.progress import RunProgress, read_summary

POLL_SECONDS = 0.2
"""How often the processes and the summary are looked at."""

FINISH_SECONDS = 120.0
"""How long the nodes may take to fetch and deploy the final model after the run's end."""

STOP_SECONDS = 15.0
"""How long the processes may take to stop before they are killed."""

LOG_LINES = 20


def demo_name(now: datetime) -> str:
    """Return a run's name that no other demo has, here or elsewhere: in a database, two runs of one name would be one."""
    return f"demo-{now:%Y%m%d}-{secrets.token_hex(3)}"


def choose_data(data_dir: Path | None, cache_dir: Path) -> str:
    """Return the first data set that is here or can be fetched: FEDMQ_DATA_DIR's, BloodMNIST, digits."""
    if data_dir is not None:
        found = sorted(path.stem for path in data_dir.glob("*.npz"))
        # Stained microscopy first: it is what the thesis trained on.
        found.sort(key=lambda name: not name.startswith(("pathmnist", "bloodmnist")))
        if found:
            return found[0]
    try:
        load_dataset(DataSettings(name="bloodmnist"), data_dir=None, cache_dir=cache_dir, progress=True)
    except DataError as error:
        err.print(f"BloodMNIST can't be had ({error}); training on scikit-learn's digits instead", markup=False)
        return "digits"
    return "bloodmnist"


def run_demo(settings: RunSettings, *, out_dir: Path, data_dir: Path | None, cache_dir: Path, is_shown: bool) -> dict[str, object]:
    """Run a whole federation in processes of its own; return its summary.

    Everything started here is stopped on every way out, Ctrl-C included. Logs stay in `out_dir/logs`.

    Args:
        settings: the run; its partition says how many nodes there are.
        out_dir: the run's folder.
        data_dir: where data set names are looked up first.
        cache_dir: where downloads are kept.
        is_shown: show progress on stderr.

    Raises:
        FedMQError: a process failed; the text shows the end of its log.
    """
    logs = out_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    run_file = out_dir / "run.toml"
    run_file.write_text(tomli_w.dumps(settings.model_dump(mode="json")), encoding="utf-8")
    # Before anything is started: wrong data must be one sentence, not four logs. Downloads happen here too.
    dataset = load_dataset(settings.data, data_dir=data_dir, cache_dir=cache_dir, progress=is_shown)
    split(dataset.train.labels, settings.partition)
    nodes = [f"node-{index}" for index in range(settings.partition.num_nodes)]
    with _signals_interrupt(), tempfile.TemporaryDirectory(prefix="fedmq-demo-") as scratch:
        folder = Path(scratch)
        keys = _make_keys(folder, out_dir / "trusted_keys", [AGGREGATOR, *nodes])
        # The broker goes last: processes that can't say goodbye to it would wait for its return.
        with PrivateBroker(folder / "broker", nodes=nodes) as broker, _Fleet(logs) as fleet:
            shared = {
                "FEDMQ_BROKER_HOST": broker.host,
                "FEDMQ_BROKER_PORT": str(broker.port),
                "FEDMQ_RUN_FILE": str(run_file),
                "FEDMQ_CACHE_DIR": str(cache_dir),
                **({"FEDMQ_DATA_DIR": str(data_dir.resolve())} if data_dir else {}),
            }
            aggregator = fleet.start(
                "aggregator",
                "aggregator",
                {
                    **shared,
                    **_login(folder, AGGREGATOR, broker.passwords[AGGREGATOR]),
                    "FEDMQ_SIGNING_KEY": str(keys[AGGREGATOR]),
                    "FEDMQ_TRUSTED_KEYS": str(out_dir / "trusted_keys"),
                    "FEDMQ_STATE_DIR": str(folder / "aggregator"),
                    "FEDMQ_OUT_DIR": str(out_dir),
                },
            )
            for index, node in enumerate(nodes):
                environment = {
                    **shared,
                    **_login(folder, node, broker.passwords[node]),
                    "FEDMQ_NODE": node,
                    "FEDMQ_RUN": settings.run,
                    "FEDMQ_SIGNING_KEY": str(keys[node]),
                    "FEDMQ_STATE_DIR": str(folder / node),
                    "FEDMQ_PARTITION_INDEX": str(index),
                    "FEDMQ_CORES": "1",
                }
                fleet.start(node, "edge_node", environment)
            with RunProgress(out_dir, settings.num_rounds, is_shown=is_shown) as progress:
                while aggregator.poll() is None:
                    fleet.check(nodes)
                    progress.update()
                    time.sleep(POLL_SECONDS)
                progress.update()
            fleet.check(["aggregator"])
            fleet.wait(nodes, FINISH_SECONDS)
    summary = read_summary(out_dir / "summary.json")
    draw_curves(summary, out_dir / "curves.png")
    return summary


class _Fleet:
    """The demo's own processes; a context manager that ends them, and only them."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> _Fleet:
        return self

    def __exit__(self, *_error: object) -> None:
        processes = self._processes.values()
        for process in processes:
            if process.poll() is None:
                process.terminate()
        give_up_at = time.monotonic() + STOP_SECONDS
        # A second Ctrl-C means: at once.
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            for process in processes:
                process.wait(max(0.0, give_up_at - time.monotonic()))
        for process in processes:
            process.kill()
            process.wait()

    def start(self, name: str, module: str, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("FEDMQ_")}
        # One core per process: more threads only make small batches slower (docs/architecture.md).
        environment = {**inherited, "OMP_NUM_THREADS": "1", **variables}
        with (self._logs / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches us alone; we stop the others in order.
                start_new_session=True,
            )
        self._processes[name] = process
        return process

    def check(self, names: list[str]) -> None:
        """Raise when one of these processes has failed."""
        for name in names:
            if self._processes[name].poll() not in {None, 0}:
                self._raise(name)

    def wait(self, names: list[str], seconds: float) -> None:
        """Wait until these processes have ended by themselves."""
        give_up_at = time.monotonic() + seconds
        for name in names:
            try:
                self._processes[name].wait(max(0.0, give_up_at - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise FedMQError(f"{name} did not finish within {seconds:.0f} s of the run's end; see {self._logs / name}.log") from None
        self.check(names)

    def _raise(self, name: str) -> None:
        log = self._logs / f"{name}.log"
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:])
        raise FedMQError(f"{name} failed with exit status {self._processes[name].returncode}; the end of {log}:\n{tail}")


def _make_keys(folder: Path, trusted: Path, names: list[str]) -> dict[str, Path]:
    """Make everyone a signing key; the public ones stay with the results, for `fedmq replay`."""
    trusted.mkdir(exist_ok=True)
    keys = {}
    for name in names:
        pair = create_signing_pair()
        (trusted / f"{name}.pub").write_bytes(pair.public)
        keys[name] = folder / f"{name}.signing.key"
        keys[name].touch(mode=0o600)
        keys[name].write_bytes(pair.private)
    return keys


def _login(folder: Path, user: str, password: str) -> dict[str, str]:
    path = folder / f"{user}.password"
    path.touch(mode=0o600)
    path.write_text(password, encoding="utf-8")
    return {"FEDMQ_BROKER_USERNAME": user, "FEDMQ_BROKER_PASSWORD_FILE": str(path)}


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into Ctrl-C, so that they clean up too.

    SIGINT as well: in the background of a script a process is born deaf to it.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
