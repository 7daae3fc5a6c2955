"""Several sites: the bridge of docs/deploy.md carries a run between two brokers.

The block is taken from the page; only address and log-in are this test's (a password instead of a certificate).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from fedmq.broker_files import write_private_broker
from fedmq.private_broker import PrivateBroker
from tests.end_to_end.processes import Processes, digits_run, read_json, rounds_done, wait_until, write_run_file
from tests.requirements import require

pytestmark = pytest.mark.mosquitto

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deploy.md"
BRIDGE, NODES, RUN = "bridge-east", ("pi-east", "pi-east-2"), "bridged"


def block(first_line: str) -> str:
    """Return the code block of the page that begins so."""
    found = re.search(rf"^```\n({re.escape(first_line)}\n.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found, f"docs/deploy.md has no block that begins with {first_line!r}"
    return found[1]


def bridge_to(central: PrivateBroker) -> str:
    """Return the remote broker's lines, for this central broker."""
    lines = [line for line in block("connection to-aggregator").splitlines() if not re.match(r"(address|bridge_\w*file) ", line)]
    login = [f"address {central.host}:{central.port}", f"remote_username {BRIDGE}", f"remote_password {central.passwords[BRIDGE]}"]
    return "\n".join([*lines[:1], *login, *lines[1:], ""])


def access_of(nodes: tuple[str, ...]) -> str:
    """Return the central access list's lines for these nodes behind the bridge."""
    head, *lines = block(f"user {BRIDGE}").splitlines()
    return "\n".join([head, *(line.replace("pi-east", node) for node in nodes for line in lines), ""])


@pytest.fixture
def add_lines(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Mapping[str, str]], None]:
    """Lines to add to the files of a private broker's folder whenever they are written."""
    added: dict[Path, Mapping[str, str]] = {}

    def write_more(folder: Path, *, port: int, passwords: Mapping[str, str]) -> Path:
        configuration = write_private_broker(folder, port=port, passwords=passwords)
        for name, text in added.get(folder, {}).items():
            with (folder / name).open("a", encoding="utf-8") as file:
                file.write(text)
        return configuration

    monkeypatch.setattr("fedmq.private_broker.write_private_broker", write_more)
    return added.__setitem__


def test_a_run_over_two_brokers(tmp_path: Path, add_lines: Callable[[Path, Mapping[str, str]], None]) -> None:
    """The aggregator knows its own broker only, the nodes theirs; a restarted remote broker goes on."""
    program = require("mosquitto")
    run_file = write_run_file(tmp_path / "run.toml", digits_run(RUN, num_rounds=4, num_nodes=2))
    add_lines(tmp_path / "central", {"acl": access_of(NODES)})
    with PrivateBroker(tmp_path / "central", nodes=[BRIDGE], program=program) as central:
        add_lines(tmp_path / "remote", {"mosquitto.conf": bridge_to(central)})
        with PrivateBroker(tmp_path / "remote", nodes=NODES, program=program) as remote, Processes(tmp_path) as processes:
            run = processes.start_run(central, run_file, tmp_path / "out")
            for index, node in enumerate(NODES):
                processes.start_node(remote, node, RUN, FEDMQ_RUN_FILE=str(run_file), FEDMQ_PARTITION_INDEX=str(index))
            wait_until(lambda: rounds_done(tmp_path / "out") >= 1, "the first round", [run])
            remote.restart()
            wait_until(lambda: run.poll() is not None, "the run's end")
    assert run.returncode == 0, (tmp_path / "run.log").read_text()
    summary = read_json(tmp_path / "out" / "summary.json")
    assert [entry["accepted"] for entry in summary["rounds"]] == [2, 2, 2, 2]
