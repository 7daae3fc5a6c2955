"""`fedmq pause|resume|recover` against real processes and a real broker: whatever they do, the digest is the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.command import Outcome, fedmq
from tests.faults.federation import AGGREGATOR, RUN, Federation
from tests.faults.proxy import wait_until
from tests.requirements import require

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow]

WAIT_SECONDS = 90.0
NUM_ROUNDS = 5


@pytest.fixture(scope="module")
def expected_digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    require("mosquitto")
    with Federation(tmp_path_factory.mktemp("undisturbed") / "run", num_rounds=NUM_ROUNDS) as federation:
        federation.start()
        federation.wait(WAIT_SECONDS)
        return federation.global_digest


def command(federation: Federation, name: str, *arguments: str, user: str = AGGREGATOR) -> Outcome:
    """Run a command of the run with a user's identity."""
    password = federation.folder / f"{user}.password"
    password.write_text(federation.broker.passwords[user], encoding="utf-8")
    variables = {
        "FEDMQ_BROKER_HOST": federation.broker.host,
        "FEDMQ_BROKER_PORT": str(federation.broker.port),
        "FEDMQ_BROKER_USERNAME": user,
        "FEDMQ_BROKER_PASSWORD_FILE": str(password),
        "FEDMQ_TRUSTED_KEYS": str(federation.folder / "trusted"),
    }
    return fedmq(name, RUN, *arguments, **variables)


def wait_for_round(federation: Federation, round_number: int) -> None:
    wait_until(lambda: federation.round_number >= round_number, timeout_seconds=WAIT_SECONDS, what=f"round {round_number}")


def test_paused_and_resumed_run_ends_with_the_undisturbed_digest(tmp_path: Path, expected_digest: str) -> None:
    with Federation(tmp_path, num_rounds=NUM_ROUNDS, train_seconds=0.5) as federation:
        federation.start()
        wait_for_round(federation, 2)
        refused = command(federation, "pause", user="observer")
        assert refused.status == 1
        assert "needs the aggregator's user name and password" in " ".join(refused.stderr.split())
        paused = command(federation, "pause", "--reason", "scanner maintenance", "--json")
        assert (paused.status, paused.json) == (0, {"run": RUN, "wanted": "pause", "heeded": True})
        assert "paused: scanner maintenance" in federation.log(AGGREGATOR)
        resumed = command(federation, "resume", "--json")
        assert (resumed.status, resumed.json["heeded"]) == (0, True)
        federation.wait(WAIT_SECONDS)
        assert federation.global_digest == expected_digest
        assert len(federation.replay("broker")) == NUM_ROUNDS


def test_stopped_run_ends_every_process_well(tmp_path: Path) -> None:
    with Federation(tmp_path, num_rounds=NUM_ROUNDS, train_seconds=0.5) as federation:
        federation.start()
        wait_for_round(federation, 2)
        stopped = command(federation, "stop", "--reason", "wrong data set")
        assert stopped.status == 0
        assert "stop heeded" in stopped.stdout
        federation.wait(WAIT_SECONDS)
        assert "stopped reason='stopped: wrong data set'" in federation.log(AGGREGATOR)
        assert {part.status for part in federation.parts.values()} == {0}


def test_recovered_run_ends_with_the_undisturbed_digest(tmp_path: Path, expected_digest: str) -> None:
    """The aggregator's disk is deleted in the middle of a round, archive included."""
    with Federation(tmp_path, num_rounds=NUM_ROUNDS, train_seconds=0.5) as federation:
        federation.start()
        wait_for_round(federation, 3)
        aggregator = federation.parts[AGGREGATOR]
        assert aggregator.process is not None
        aggregator.process.kill()
        aggregator.process.wait()
        for name in ("aggregator", "out"):
            shutil.rmtree(tmp_path / name)
        folders = ("--out", str(tmp_path / "out"), "--state", str(tmp_path / "aggregator"))
        recovered = command(federation, "recover", *folders, user="observer")
        assert recovered.status == 0, recovered.stderr
        assert "recovered 2 round(s); the run goes on in round 3" in recovered.stdout
        again = command(federation, "recover", *folders, user="observer")
        assert again.status == 1
        assert "holds a checkpoint of this run" in " ".join(again.stderr.split())
        federation.start_part(aggregator)
        federation.wait(WAIT_SECONDS)
        assert federation.global_digest == expected_digest
        assert federation.replay("broker") == federation.replay("archive")
