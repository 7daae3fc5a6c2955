"""`doctor`, `status` and `run` where there is no broker, a real one, one that refuses, and one with tiny packets."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w

from federation.messages import NodeStatus, RunState
from federation.settings import parse_settings
from federation.topics import StatusTopic
from fedmq.private_broker import PrivateBroker
from tests.broker.client import connected
from tests.cli.command import Outcome, fedmq
from tests.requirements import require

CHECKS = ["python", "cpu", "memory", "disk", "clock", "torch"]
START_SECONDS = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def nowhere() -> dict[str, str]:
    """Variables that name a port on which nobody listens."""
    return {"FEDMQ_BROKER_HOST": "127.0.0.1", "FEDMQ_BROKER_PORT": str(free_port())}


def login(broker: PrivateBroker, user: str, folder: Path, password: str | None = None) -> dict[str, str]:
    """Return the variables that log in to a broker."""
    file = folder / f"{user}.password"
    file.write_text(password or broker.passwords[user])
    return {
        "FEDMQ_BROKER_HOST": broker.host,
        "FEDMQ_BROKER_PORT": str(broker.port),
        "FEDMQ_BROKER_USERNAME": user,
        "FEDMQ_BROKER_PASSWORD_FILE": str(file),
    }


@pytest.fixture
def tiny_broker(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Mosquitto that takes no packet above 20,000 bytes; the variables that name it."""
    port = free_port()
    configuration = tmp_path / "tiny.conf"
    configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_packet_size 20000\n")
    broker = subprocess.Popen([require("mosquitto"), "-c", configuration], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        give_up_at = time.monotonic() + START_SECONDS
        while not listens(port):
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        yield {"FEDMQ_BROKER_HOST": "127.0.0.1", "FEDMQ_BROKER_PORT": str(port)}
    finally:
        broker.terminate()
        broker.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def finding(outcome: Outcome, check: str) -> dict[str, str]:
    """Return one finding of `doctor --json`."""
    (found,) = [entry for entry in outcome.json if entry["check"] == check]
    assert isinstance(found, dict)
    return found


def test_doctor_without_a_broker_checks_this_machine() -> None:
    outcome = fedmq("doctor", "--no-broker", "--json")
    assert [entry["check"] for entry in outcome.json] == CHECKS
    assert finding(outcome, "torch")["verdict"] == "ok"
    assert outcome.status == (1 if any(entry["verdict"] == "failed" for entry in outcome.json) else 0)
    assert all(entry["advice"] for entry in outcome.json if entry["verdict"] != "ok")


def test_doctor_says_that_there_is_no_broker_and_what_to_do(nowhere: dict[str, str]) -> None:
    outcome = fedmq("doctor", "--json", **nowhere)
    assert outcome.status == 1
    found = finding(outcome, "broker")
    assert found["verdict"] == "failed"
    assert nowhere["FEDMQ_BROKER_PORT"] in found["found"]
    assert "start the broker" in found["advice"]
    shown = fedmq("doctor", **nowhere)
    assert shown.status == 1
    assert found["advice"] in shown.stdout


def test_doctor_finds_a_broker_good(mosquitto: PrivateBroker, tmp_path: Path) -> None:
    outcome = fedmq("doctor", "--json", **login(mosquitto, "observer", tmp_path))
    found = finding(outcome, "broker")
    assert found["verdict"] == "ok"
    assert "MQTT 5" in found["found"]
    assert mosquitto.passwords["observer"] not in outcome.stdout


@pytest.mark.mosquitto
def test_doctor_warns_of_a_run_of_two_nodes(mosquitto: PrivateBroker, run_name: str, tmp_path: Path) -> None:
    settings = parse_settings({"run": run_name, "rounds": {"min_nodes": 2}})
    state = RunState(
        run=run_name,
        phase="training",
        round_number=1,
        num_rounds=2,
        epoch=1,
        method="fedavg",
        model=settings.model,
        settings=settings.model_dump(mode="json"),
    )
    topic = f"fedmq/v2/{run_name}/state"
    with connected(mosquitto, "aggregator") as aggregator:
        assert aggregator.publish(topic, state.to_payload())
        outcome = fedmq("doctor", "--json", **login(mosquitto, "observer", tmp_path))
        assert aggregator.publish(topic, b"")
    (found,) = [entry for entry in outcome.json if entry["check"] == "cohort"]
    assert found["verdict"] == "warning"
    assert f"run {run_name} begins rounds with 2" in found["found"]


def test_doctor_warns_of_tiny_packets(tiny_broker: dict[str, str]) -> None:
    found = finding(fedmq("doctor", "--json", **tiny_broker), "broker")
    assert found["verdict"] == "warning"
    assert "20000" in found["found"]
    assert "max_packet_size" in found["advice"]


def test_doctor_names_a_refusal(mosquitto: PrivateBroker, tmp_path: Path) -> None:
    outcome = fedmq("doctor", "--json", **login(mosquitto, "observer", tmp_path, password="not-it-at-all"))
    found = finding(outcome, "broker")
    assert (outcome.status, found["verdict"]) == (1, "failed")
    assert "not-it-at-all" not in outcome.stdout


@pytest.mark.parametrize(("data", "verdict"), [("digits", "ok"), ("no-such-set", "failed")])
def test_doctor_looks_for_the_nodes_images(data: str, verdict: str) -> None:
    outcome = fedmq("doctor", "--no-broker", "--json", "--data", data)
    assert finding(outcome, "data")["verdict"] == verdict
    assert verdict == "ok" or outcome.status == 1


def test_doctor_takes_a_nodes_own_variables(tmp_path: Path) -> None:
    """It is run where a node is to run, with the node's .env."""
    variables = {"FEDMQ_NODE": "node-0", "FEDMQ_STATE_DIR": str(tmp_path), "FEDMQ_DATA": "digits"}
    assert finding(fedmq("doctor", "--no-broker", "--json", **variables), "data")["verdict"] == "ok"


def test_doctor_begins_with_wrong_variables() -> None:
    outcome = fedmq("doctor", "--json", FEDMQ_BROKER_PORT="99999", FEDMQ_BROKR_HOST="x")
    assert outcome.status == 1
    (found,) = outcome.json
    assert "FEDMQ_BROKER_PORT" in found["found"]
    assert "FEDMQ_BROKR_HOST" in found["found"]


def test_status_without_a_broker_is_one_sentence(nowhere: dict[str, str]) -> None:
    outcome = fedmq("status", "--json", **nowhere)
    assert (outcome.status, outcome.stdout) == (1, "")
    assert nowhere["FEDMQ_BROKER_PORT"] in outcome.stderr


def test_status_refused_is_one_sentence(mosquitto: PrivateBroker, tmp_path: Path) -> None:
    outcome = fedmq("status", **login(mosquitto, "observer", tmp_path, password="not-it-at-all"))
    assert (outcome.status, outcome.stdout) == (1, "")
    assert len(outcome.stderr.splitlines()) == 1


def test_status_sums_up_what_a_node_says_in_runs_it_has_invented(own_mosquitto: PrivateBroker, tmp_path: Path) -> None:
    """6,000 of them took it 17 s and 6,021 lines."""
    status = NodeStatus(node="node-1", online=True, instance="i", num_examples=12, problem="line one\n\x1b[31mline two")
    with connected(own_mosquitto, "node-1") as client:
        for index in range(500):
            assert client.publish(str(StatusTopic(f"invented-{index}", "node-1")), status.to_payload())
    with connected(own_mosquitto, "node-2") as client:
        waiting = NodeStatus(node="node-2", online=True, instance="i", num_examples=12, problem="waits\n\x1b[31mforged")
        assert client.publish(str(StatusTopic("ward", "node-2")), waiting.to_payload())
    variables = login(own_mosquitto, "observer", tmp_path)
    outcome = fedmq("status", **variables)
    assert "left out: 500 statuses of node-1" in outcome.stderr
    assert "node-2" in outcome.stdout
    assert "\x1b" not in outcome.stdout
    assert len(outcome.stdout.splitlines()) < 30
    shown = fedmq("status", "--json", **variables).json
    assert shown["statuses_left_out"] == {"node-1": 500}
    assert [node["node"] for node in shown["nodes"]] == ["node-2"]


def test_status_shows_nodes_and_passes_over_nonsense(own_mosquitto: PrivateBroker, tmp_path: Path) -> None:
    with connected(own_mosquitto, "node-1") as client:
        status = NodeStatus(node="node-1", online=True, instance="i", num_examples=12, problem="no disk")
        assert client.publish(str(StatusTopic("ward", "node-1")), status.to_payload())
    with connected(own_mosquitto, "aggregator") as client:
        assert client.publish("fedmq/v2/ward/state", b"{not json")
    variables = login(own_mosquitto, "observer", tmp_path)
    shown = fedmq("status", "--json", **variables).json
    assert shown["runs"] == []
    assert [(node["run"], node["node"], node["online"], node["problem"]) for node in shown["nodes"]] == [
        ("ward", "node-1", True, "no disk")
    ]
    assert "no disk" in fedmq("status", **variables).stdout


def test_run_ends_at_once_on_data_that_is_not_there(nowhere: dict[str, str], tmp_path: Path) -> None:
    """A missing broker is waited for, a server's parts start in any order; a wrong name no waiting mends."""
    run_file = tmp_path / "run.toml"
    run_file.write_text(tomli_w.dumps({"run": "alone", "data": {"name": "no-such-set"}}))
    outcome = fedmq("run", run_file, "--out", tmp_path / "out", **nowhere)
    assert outcome.status == 2
    assert "no data set 'no-such-set'" in outcome.stderr
