"""One short run over a broker, disturbed on purpose, and everything that is read back from it afterwards."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from federation.settings import load_run_file
from fedmq.private_broker import PrivateBroker
from fedmq.simulate import run_simulation
from tests.brokers.ejabberd import EjabberdBroker
from tests.end_to_end.processes import Processes, descendants, digits_run, read_json, rounds_done, wait_until, write_run_file

AnyBroker: TypeAlias = PrivateBroker | EjabberdBroker

RUN = "trial"
NUM_ROUNDS = 6
NUM_NODES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What one broker showed."""

    digest: str
    undisturbed_digest: str
    """Of the same run in the simulator, without a broker."""
    rounds: list[int]
    """That `fedmq rounds` finds on the broker."""
    replayed: int
    """Rounds that `fedmq replay --from broker` repeated, bit for bit."""
    recovered: int
    """Rounds that `fedmq recover` put back into an empty folder."""
    recovered_digest: str

    @property
    def faults(self) -> list[str]:
        """What is not as it must be; empty where the broker serves."""
        found = {
            "another final model": self.digest != self.undisturbed_digest,
            "rounds does not list every round": self.rounds[:NUM_ROUNDS] != list(range(1, NUM_ROUNDS + 1)),
            "replay does not repeat every round": self.replayed != NUM_ROUNDS,
            "recover does not find every round": self.recovered != NUM_ROUNDS,
            "recover ends with another model": self.recovered_digest != self.digest,
        }
        return [fault for fault, is_so in found.items() if is_so]


def undisturbed_digest(folder: Path) -> str:
    """Return the digest that every broker must end with."""
    run_file = _write_run_file(folder)
    return str(
        run_simulation(load_run_file(run_file), out_dir=folder / "simulated", data_dir=None, cache_dir=folder, is_shown=False)[
            "global_digest"
        ]
    )


def try_broker(broker: AnyBroker, folder: Path, expected_digest: str) -> Trial:
    """Train over a broker: kill the aggregator in one round, the broker in another; then read the run back.

    Args:
        broker: started, holding nothing of run `trial`.
        folder: for logs and states.
        expected_digest: from `undisturbed_digest`.
    """
    run_file, out = _write_run_file(folder), folder / "out"
    with Processes(folder) as processes:
        nodes = [
            processes.start_node(broker, f"node-{index}", RUN, FEDMQ_RUN_FILE=str(run_file), FEDMQ_PARTITION_INDEX=str(index))
            for index in range(NUM_NODES)
        ]
        run = processes.start_run(broker, run_file, out)
        wait_until(lambda: rounds_done(out) >= 1, "round 1", [*nodes, run])
        (aggregator,) = descendants(run)
        aggregator.kill()
        wait_until(lambda: run.poll() is not None, "the killed run's end")
        run = processes.start_run(broker, run_file, out, "--resume")
        wait_until(lambda: rounds_done(out) >= 3, "round 3", [*nodes, run])
        broker.kill()
        broker.start()
        wait_until(lambda: run.poll() is not None, "the run's end")
        assert run.returncode == 0, (folder / "run.log").read_text(encoding="utf-8")
        listed = _ask(processes, broker, folder, "rounds", RUN, "--from", "broker", "--out", folder / "none")
        replayed = _ask(processes, broker, folder, "replay", RUN, "--from", "broker", "--out", folder / "none")
        recovered = _ask(processes, broker, folder, "recover", RUN, "--out", folder / "recovered")
    return Trial(
        digest=read_json(out / "summary.json")["global_digest"],
        undisturbed_digest=expected_digest,
        rounds=[entry["round_number"] for entry in listed["rounds"] if entry["broker_bytes"]],
        replayed=len(replayed["rounds"]),
        recovered=recovered["rounds"],
        recovered_digest=recovered["global_digest"],
    )


def _write_run_file(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return write_run_file(folder / "run.toml", digits_run(RUN, num_rounds=NUM_ROUNDS, num_nodes=NUM_NODES, local_epochs=2))


def _ask(processes: Processes, broker: AnyBroker, folder: Path, command: str, *arguments: str | Path) -> dict[str, Any]:
    """Return what a command prints as JSON, asked with the aggregator's identity."""
    log = f"{command}.json"
    login = (
        "--host",
        broker.host,
        "--port",
        str(broker.port),
        "--username",
        "aggregator",
        "--password-file",
        folder / "aggregator.password",
    )
    process = processes.start("fedmq.cli", command, *arguments, *login, "--json", log=log)
    _wait(process)
    text = (folder / log).read_text(encoding="utf-8")
    assert process.returncode == 0, f"fedmq {command}: {text}"
    answer: dict[str, Any] = json.loads(text[text.index("{") :])
    return answer


def _wait(process: subprocess.Popen[bytes]) -> None:
    wait_until(lambda: process.poll() is not None, "a command's end")
