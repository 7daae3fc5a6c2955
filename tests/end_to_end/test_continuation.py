"""Runs that are broken off and continued, and nodes that come late, over a real Mosquitto with real processes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from federation import topics
from federation.broker_address import BrokerAddress
from federation.messages import NodeStatus, RoundPlan, parse
from federation.mqtt import MqttTransport
from federation.settings import load_run_file
from fedmq.private_broker import PrivateBroker
from fedmq.simulate import run_simulation
from tests.end_to_end.processes import (
    WAIT_SECONDS,
    Processes,
    alive,
    descendants,
    digits_run,
    read_json,
    rounds_done,
    wait_until,
    write_run_file,
)
from tests.end_to_end.recorder import recording

NUM_ROUNDS = 8


def start_workers(processes: Processes, broker: PrivateBroker, run: str, run_file: Path, *indices: int) -> list[subprocess.Popen[bytes]]:
    """Start simulated nodes, each with its part of the run file's data."""
    return [
        processes.start_node(broker, f"node-{index}", run, FEDMQ_RUN_FILE=str(run_file), FEDMQ_PARTITION_INDEX=str(index))
        for index in indices
    ]


def undisturbed_digest(run_file: Path, out: Path) -> str:
    """Return the digest of the run file's run without faults, from the simulator."""
    return str(run_simulation(load_run_file(run_file), out_dir=out, data_dir=None, cache_dir=out, is_shown=False)["global_digest"])


def test_a_killed_and_a_stopped_aggregator_continue_to_the_same_model(own_mosquitto: PrivateBroker, tmp_path: Path, run_name: str) -> None:
    """Kill -9 of the aggregator in one round, SIGTERM to the command in another: two times resumed, nothing is different."""
    run_file = write_run_file(tmp_path / "run.toml", digits_run(run_name, num_rounds=NUM_ROUNDS, num_nodes=2, local_epochs=3))
    out = tmp_path / "out"
    with Processes(tmp_path) as processes:
        nodes = start_workers(processes, own_mosquitto, run_name, run_file, 0, 1)
        killed = processes.start_run(own_mosquitto, run_file, out)
        wait_until(lambda: rounds_done(out) >= 2, "round 2", [*nodes, killed])
        (aggregator,) = descendants(killed)
        aggregator.kill()
        wait_until(lambda: killed.poll() is not None, "the killed run's end")
        assert killed.returncode == 3, "continuable, as after any interruption"
        num_before = rounds_done(out)
        assert num_before < NUM_ROUNDS, "it was to be killed in the middle"

        stopped = processes.start_run(own_mosquitto, run_file, out, "--resume")
        wait_until(lambda: rounds_done(out) > num_before, "a round more", [*nodes, stopped])
        under = descendants(stopped)
        stopped.terminate()
        wait_until(lambda: stopped.poll() is not None, "the stopped run's end")
        assert stopped.returncode == 3
        assert alive(under) == set()
        assert rounds_done(out) < NUM_ROUNDS, "it was to be stopped in the middle"

        finished = processes.start_run(own_mosquitto, run_file, out, "--resume")
        wait_until(lambda: finished.poll() is not None, "the run's end", nodes[:0])
        assert finished.returncode == 0, (tmp_path / "run.log").read_text()
        wait_until(lambda: all(node.poll() == 0 for node in nodes), "the nodes' end")
    summary = read_json(out / "summary.json")
    assert [(entry["round_number"], entry["accepted"]) for entry in summary["rounds"]] == [
        (number, 2) for number in range(1, NUM_ROUNDS + 1)
    ]
    assert summary["global_digest"] == undisturbed_digest(run_file, tmp_path / "undisturbed")
    assert "Traceback" not in (tmp_path / "run.log").read_text()


def test_a_run_without_nodes_says_that_it_waits_for_them(own_mosquitto: PrivateBroker, tmp_path: Path, run_name: str) -> None:
    """Told by the broker, as the live line is; a silence would look like a hang."""
    run_file = write_run_file(tmp_path / "run.toml", digits_run(run_name, num_rounds=2, num_nodes=2))
    log = tmp_path / "run.log"
    with Processes(tmp_path) as processes:
        run = processes.start_run(own_mosquitto, run_file, tmp_path / "out")
        wait_until(lambda: "waiting for nodes: 0 of 2 are here" in log.read_text(encoding="utf-8"), "the line", [run])
        run.terminate()
        assert run.wait(WAIT_SECONDS) == 3
    assert "Traceback" not in log.read_text(encoding="utf-8")


def test_a_late_node_takes_part_from_the_next_round(own_mosquitto: PrivateBroker, tmp_path: Path, run_name: str) -> None:
    """Two of three are enough to begin; the third comes after round 1 and is in every cohort from then on."""
    values: dict[str, Any] = digits_run(run_name, num_rounds=500, num_nodes=3) | {"rounds": {"min_nodes": 2}}
    run_file = write_run_file(tmp_path / "run.toml", values)
    out = tmp_path / "out"
    with recording(own_mosquitto) as recorder, Processes(tmp_path) as processes:
        run = processes.start_run(own_mosquitto, run_file, out)
        nodes = start_workers(processes, own_mosquitto, run_name, run_file, 0, 1)
        wait_until(lambda: rounds_done(out) >= 1, "round 1", [*nodes, run])
        nodes += start_workers(processes, own_mosquitto, run_name, run_file, 2)
        has_three = lambda: any(entry["accepted"] == 3 for entry in read_json(out / "summary.json")["rounds"][:-1])  # noqa: E731
        wait_until(has_three, "two rounds of three nodes", [*nodes, run])
        run.terminate()
        wait_until(lambda: run.poll() is not None, "the run's end")
        seen = recorder.seen()
    joined_after, cohorts = 0, {}
    for message in seen:
        topic = topics.parse_topic(message.topic)
        if isinstance(topic, topics.PlanTopic):
            cohorts[topic.round_number] = parse(RoundPlan, message.payload).cohort
        elif isinstance(topic, topics.StatusTopic) and topic.node == "node-2" and parse(NodeStatus, message.payload).online:
            joined_after = joined_after or max(cohorts)
    assert joined_after >= 1
    assert all(cohorts[number] == ["node-0", "node-1"] for number in range(1, joined_after + 1))
    # The plan of the next round may have been on its way when the node's status came.
    assert all(cohorts[number] == ["node-0", "node-1", "node-2"] for number in range(joined_after + 2, max(cohorts) + 1))
    assert max(cohorts) >= joined_after + 2
    assert all(entry["accepted"] == len(cohorts[entry["round_number"]]) for entry in read_json(out / "summary.json")["rounds"])


@pytest.mark.slow
def test_a_ghost_is_not_waited_for(own_mosquitto: PrivateBroker, tmp_path: Path, run_name: str) -> None:
    """A device that died together with the broker: its retained status stays online, and no will takes it back."""
    run_file = write_run_file(tmp_path / "run.toml", digits_run(run_name, num_rounds=2, num_nodes=2))
    status = NodeStatus(
        node="node-2",
        online=True,
        instance="ghost",
        num_examples=100,
        image_shape=[1, 8, 8],
        num_classes=10,
        capabilities=["fedavg", "float32"],
    )
    address = BrokerAddress(host=own_mosquitto.host, port=own_mosquitto.port, username="node-2", password=own_mosquitto.passwords["node-2"])
    ghost = MqttTransport(address, client_id="ghost", on_event=lambda _event: None)
    ghost.start()
    ghost.publish(str(topics.StatusTopic(run_name, "node-2")), status.to_payload(), retain=True)
    ghost.stop(20.0)
    assert ghost.num_pending == 0
    with recording(own_mosquitto) as recorder, Processes(tmp_path) as processes:
        nodes = start_workers(processes, own_mosquitto, run_name, run_file, 0, 1)
        run = processes.start_run(own_mosquitto, run_file, tmp_path / "out")
        wait_until(lambda: run.poll() is not None, "the run's end")
        assert run.returncode == 0, (tmp_path / "run.log").read_text()
        wait_until(lambda: all(node.poll() == 0 for node in nodes), "the nodes' end")
        seen = recorder.seen()
    plans = [message for message in seen if isinstance(topics.parse_topic(message.topic), topics.PlanTopic)]
    assert plans
    assert all(parse(RoundPlan, message.payload).cohort == ["node-0", "node-1"] for message in plans)
    states = [message for message in seen if isinstance(topics.parse_topic(message.topic), topics.StateTopic)]
    assert any(b"node-2 sits out: its status is old" in message.payload for message in states)
