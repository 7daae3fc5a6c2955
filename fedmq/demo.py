"""The demo: a private Mosquitto, one aggregator process and N edge-node processes on this machine."""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.request import getproxies

import tomli_w

from federation.broker_address import BrokerAddress
from federation.data import Dataset, load_dataset
from federation.errors import DataError
from federation.known_datasets import MEDMNIST_URL
from federation.partition import split
from federation.settings import SECONDS_PER_DAY, DataSettings, RunSettings, parse_settings
from fedmq.console import err
from fedmq.demo_processes import DemoProcesses, login, make_keys
from fedmq.kept_state import RUN_FILE, finish_results, make_state
from fedmq.live_line import LiveFeed, LiveLine, connect_to
from fedmq.private_broker import AGGREGATOR, OBSERVER, PrivateBroker
from fedmq.progress import RunProgress

POLL_SECONDS = 0.2
"""How often the processes and the summary are looked at."""

FINISH_SECONDS = 120.0
"""How long the nodes may take to fetch and deploy the final model after the run's end."""

PROBE_SECONDS = 3.0
"""How long the data's server may take to answer at all before this machine counts as offline."""

LARGE_SET = 20_000
"""Training images from which fewer steps an image learn as much: of MNIST's 60,000 over three nodes, four rounds of one local epoch
in batches of 64 give 98.9 %, in a quarter of the time of five rounds of five epochs in batches of 16 (docs/results.md)."""

NUM_ROUNDS, LOCAL_EPOCHS = 5, 5
LARGE_SET_ROUNDS = 4
LARGE_SET_TRAINING: Mapping[str, Any] = {"local_epochs": 1, "batch_size": 64, "learning_rate": 0.05}


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
    wanted = DataSettings(name="bloodmnist")
    try:
        load_dataset(wanted, data_dir=None, cache_dir=cache_dir, download=False)
    except DataError:
        try:
            _assert_online()
            load_dataset(wanted, data_dir=None, cache_dir=cache_dir, progress=True)
        except (OSError, DataError):
            err.print("no internet, or its server is away: training on scikit-learn's digits instead of BloodMNIST", markup=False)
            return "digits"
    return "bloodmnist"


def demo_settings(given: Mapping[str, Any], dataset: Dataset) -> RunSettings:
    """Return the demo's settings: those given, over local training that fits the size of the data.

    Args:
        given: nested names and values as in a run file, with what the command line asks for.
        dataset: what is trained on.

    Raises:
        SettingsError: a value is wrong.
    """
    is_large = given.get("recipe") == "best" and len(dataset.train) >= LARGE_SET
    fitting = LARGE_SET_TRAINING if is_large else {"local_epochs": LOCAL_EPOCHS}
    num_rounds = given.get("num_rounds") or (LARGE_SET_ROUNDS if is_large else NUM_ROUNDS)
    # All processes are here, and one that dies ends the demo: a deadline could only spoil a round on a busy machine.
    rounds = {"quorum": 1.0, "deadline_seconds": 7 * SECONDS_PER_DAY, **given.get("rounds", {})}
    training = {**fitting, **given.get("training", {})}
    return parse_settings({**given, "num_rounds": num_rounds, "training": training, "rounds": rounds}, source="demo")


def run_demo(
    settings: RunSettings,
    *,
    out_dir: Path,
    data_dir: Path | None,
    cache_dir: Path,
    is_shown: bool,
    is_resumed: bool = False,
    dataset: Dataset | None = None,
) -> dict[str, Any]:
    """Run a whole federation in processes of its own; return its summary.

    Everything started here is stopped on every way out, Ctrl-C included. Logs stay in `out_dir/logs`; what an interrupted
    run needs to go on stays in `out_dir/state` (fedmq/kept_state.py).

    Args:
        settings: the run; its partition says how many nodes there are.
        out_dir: the run's folder.
        data_dir: where data set names are looked up first.
        cache_dir: where downloads are kept.
        is_shown: show progress on stderr.
        is_resumed: go on with the interrupted run in `out_dir`.
        dataset: the data, where they are loaded already.

    Raises:
        FedMQError: a process failed; the text shows the end of its log.
        KeyboardInterrupt: Ctrl-C came, or what the caller makes one of.
    """
    logs = out_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    # Before anything is started: wrong data must be one sentence, not four logs. Downloads happen here too.
    dataset = dataset or load_dataset(settings.data, data_dir=data_dir, cache_dir=cache_dir, progress=is_shown)
    split(dataset.train.labels, settings.partition)
    (out_dir / RUN_FILE).write_text(tomli_w.dumps(settings.model_dump(mode="json")), encoding="utf-8")
    nodes = [f"node-{index}" for index in range(settings.partition.num_nodes)]
    folder = make_state(out_dir)
    keys = make_keys(folder, out_dir / "trusted_keys", [AGGREGATOR, *nodes])
    # The broker goes last: processes that can't say goodbye to it would wait for its return.
    with PrivateBroker(folder / "broker", nodes=nodes) as broker, DemoProcesses(logs) as processes:
        shared = {
            "FEDMQ_BROKER_HOST": broker.host,
            "FEDMQ_BROKER_PORT": str(broker.port),
            "FEDMQ_RUN_FILE": str(out_dir / RUN_FILE),
            "FEDMQ_CACHE_DIR": str(cache_dir),
            **({"FEDMQ_DATA_DIR": str(data_dir.resolve())} if data_dir else {}),
        }
        aggregator = processes.start(
            "aggregator",
            "aggregator",
            {
                **shared,
                **login(folder, AGGREGATOR, broker.passwords[AGGREGATOR]),
                "FEDMQ_SIGNING_KEY": str(keys[AGGREGATOR]),
                "FEDMQ_TRUSTED_KEYS": str(out_dir / "trusted_keys"),
                "FEDMQ_STATE_DIR": str(folder / "aggregator"),
                "FEDMQ_OUT_DIR": str(out_dir),
                "FEDMQ_RESUME": "1" if is_resumed else "0",
            },
        )
        for index, node in enumerate(nodes):
            environment = {
                **shared,
                **login(folder, node, broker.passwords[node]),
                "FEDMQ_NODE": node,
                "FEDMQ_RUN": settings.run,
                "FEDMQ_SIGNING_KEY": str(keys[node]),
                "FEDMQ_STATE_DIR": str(folder / node),
                "FEDMQ_PARTITION_INDEX": str(index),
                "FEDMQ_CORES": "1",
                **({"FEDMQ_EXTENSIONS": ",".join(settings.own_code())} if settings.own_code() else {}),
            }
            processes.start(node, "edge_node", environment)
        address = BrokerAddress(host=broker.host, port=broker.port, username=OBSERVER, password=broker.passwords[OBSERVER])
        line = LiveLine(run=settings.run, num_nodes=len(nodes))
        with (
            LiveFeed(line, connect_to(address), time.monotonic) as feed,
            RunProgress(out_dir, settings.num_rounds, is_shown=is_shown, live=feed.text) as progress,
        ):
            while aggregator.poll() is None:
                processes.check(nodes)
                progress.update()
                time.sleep(POLL_SECONDS)
            progress.update()
            processes.check(["aggregator"])
            processes.wait(nodes, FINISH_SECONDS)
    return finish_results(out_dir)


def _assert_online() -> None:
    """Raise unless the data's server answers.

    Raises:
        OSError: it does not.
    """
    if "https" in getproxies():
        return  # what the proxy reaches, only a request through it can tell
    host = MEDMNIST_URL.split("/")[2]
    socket.create_connection((host, 443), timeout=PROBE_SECONDS).close()
