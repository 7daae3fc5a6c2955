"""What a broker carries while a run is trained: the topics of docs/protocol.md, retained as it says, and nothing else.

Two nodes train; a third has no images, says so, and the run goes on without it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from federation import topics
from federation.chunks import parse_chunk
from federation.messages import (
    Ack,
    AggregatorStatus,
    GlobalManifest,
    Message,
    MetricsReport,
    NodeStatus,
    RoundPlan,
    RoundResult,
    RunState,
    UpdateManifest,
    parse,
)
from fedmq.private_broker import PrivateBroker
from tests.end_to_end.processes import Processes, digits_run, read_json, wait_until, write_run_file
from tests.end_to_end.recorder import Recorder, Seen, open_access, recording
from tests.requirements import require

pytestmark = pytest.mark.mosquitto

RUN = "watched"
NUM_ROUNDS = 3
WORKERS = ("node-0", "node-1")
IDLER = "node-2"

MESSAGES: Mapping[type[topics.Topic], type[Message]] = {
    topics.StateTopic: RunState,
    topics.AggregatorTopic: AggregatorStatus,
    topics.StatusTopic: NodeStatus,
    topics.PlanTopic: RoundPlan,
    topics.GlobalManifestTopic: GlobalManifest,
    topics.UpdateManifestTopic: UpdateManifest,
    topics.AckTopic: Ack,
    topics.ResultTopic: RoundResult,
    topics.MetricsTopic: MetricsReport,
}
"""The message of each topic of an undisturbed FedAvg run; the other two kinds are chunks."""

CHUNKS = (topics.GlobalChunkTopic, topics.UpdateChunkTopic)
NOT_RETAINED = (topics.AckTopic, topics.MetricsTopic)
"""All others are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedRun:
    """A run that has ended, and what its broker carried and holds."""

    out: Path
    exit_status: int
    output: str
    carried: list[Seen]
    held: dict[str, bytes]
    """What the broker gives a client that comes after the end."""
    status: dict[str, Any]
    """What `fedmq status --json` says after the end."""

    def messages(self, topic_type: type[topics.Topic]) -> list[tuple[Any, bytes]]:
        """Return (topic, payload) of one kind, in order."""
        parsed = [(topics.parse_topic(seen.topic), seen.payload) for seen in self.carried]
        return [(topic, payload) for topic, payload in parsed if isinstance(topic, topic_type)]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedRun]:
    """Three rounds of two nodes, and one node whose images are not there."""
    folder = tmp_path_factory.mktemp("watched")
    out = folder / "out"
    values = digits_run(RUN, num_rounds=NUM_ROUNDS, num_nodes=2)
    run_file = write_run_file(folder / "run.toml", values)
    with PrivateBroker(folder / "broker", nodes=[*WORKERS, IDLER], program=require("mosquitto")) as broker:
        open_access(broker)
        with recording(broker) as recorder, Processes(folder) as processes:
            nodes = [processes.start_node(broker, IDLER, RUN, FEDMQ_DATA=str(folder / "no-images.npz"))]
            wait_until(lambda: any(seen.topic == str(topics.StatusTopic(RUN, IDLER)) for seen in recorder.seen()), "its status", nodes)
            run = processes.start_run(broker, run_file, out)
            nodes += [
                processes.start_node(broker, name, RUN, FEDMQ_RUN_FILE=str(run_file), FEDMQ_PARTITION_INDEX=str(index))
                for index, name in enumerate(WORKERS)
            ]
            wait_until(lambda: run.poll() is not None, "the run's end")
            wait_until(lambda: all(node.poll() == 0 for node in nodes), "the nodes' end")
            status = ask_status(processes, broker, folder)
            carried = recorder.seen()
        held = read_held(broker)
        yield WatchedRun(
            out=out,
            exit_status=run.returncode,
            output=(folder / "run.log").read_text(),
            carried=carried,
            held=held,
            status=status,
        )


def ask_status(processes: Processes, broker: PrivateBroker, folder: Path) -> dict[str, Any]:
    """Return the output of `fedmq status --json`."""
    password_file = folder / "observer.password"
    password_file.write_text(broker.passwords["observer"])
    login = ("--host", broker.host, "--port", str(broker.port), "--username", "observer", "--password-file", password_file)
    command = processes.start("fedmq.cli", "status", *login, "--json", log="status.json")
    wait_until(lambda: command.poll() is not None, "the status")
    assert command.returncode == 0
    return read_json(folder / "status.json")


def read_held(broker: PrivateBroker) -> dict[str, bytes]:
    """Return what the broker retains: everything a late client gets until its mark, published last, comes through."""
    with recording(broker) as recorder:
        held = _everything_until_quiet(recorder)
    assert all(seen.retain for seen in held)
    return {seen.topic: seen.payload for seen in held}


def _everything_until_quiet(recorder: Recorder) -> list[Seen]:
    """Wait for the last of what docs/protocol.md says is there; whatever else is held comes in the same burst."""
    last = str(topics.StateTopic(RUN))
    final = str(topics.GlobalManifestTopic(RUN, NUM_ROUNDS + 1))
    wait_until(lambda: {last, final} <= {seen.topic for seen in recorder.seen()}, "the retained messages")
    return recorder.seen()


def test_the_run_ends_well(watched: WatchedRun) -> None:
    assert watched.exit_status == 0, watched.output
    rounds = read_json(watched.out / "summary.json")["rounds"]
    assert [(entry["round_number"], entry["accepted"]) for entry in rounds] == [(number, 2) for number in range(1, NUM_ROUNDS + 1)]


def test_every_topic_is_in_the_protocol_and_every_payload_validates(watched: WatchedRun) -> None:
    for seen in watched.carried:
        topic = topics.parse_topic(seen.topic)
        assert topic.run == RUN
        if isinstance(topic, CHUNKS):
            assert parse_chunk(seen.payload).index == topic.index
            continue
        message = parse(MESSAGES[type(topic)], seen.payload)
        for name in ("run", "round_number", "node"):
            if hasattr(topic, name) and hasattr(message, name):
                assert getattr(message, name) == getattr(topic, name), seen.topic


def test_every_kind_of_message_occurs(watched: WatchedRun) -> None:
    kinds = {type(topics.parse_topic(seen.topic)) for seen in watched.carried}
    assert kinds == {*MESSAGES, *CHUNKS}


def test_messages_are_published_retained_as_the_protocol_says(watched: WatchedRun) -> None:
    for seen in watched.carried:
        assert seen.retain is not isinstance(topics.parse_topic(seen.topic), NOT_RETAINED), seen.topic


def test_the_broker_holds_the_last_of_each_retained_topic_and_nothing_else(watched: WatchedRun) -> None:
    expected = {seen.topic: seen.payload for seen in watched.carried if seen.retain}
    assert watched.held == {topic: payload for topic, payload in expected.items() if payload}


def test_what_is_held_is_whole(watched: WatchedRun) -> None:
    """Per round a plan, a result, the global model and each worker's update; the final model as that of one round more."""
    held = {topics.parse_topic(topic) for topic in watched.held}
    expected: set[topics.Topic] = {
        topics.StateTopic(RUN),
        topics.AggregatorTopic(RUN),
        *(topics.StatusTopic(RUN, node) for node in (*WORKERS, IDLER)),
    }
    for number in range(1, NUM_ROUNDS + 2):
        manifest = topics.GlobalManifestTopic(RUN, number)
        num_chunks = len(parse(GlobalManifest, watched.held[str(manifest)]).chunk_sha256)
        expected |= {manifest, *(topics.GlobalChunkTopic(RUN, number, index) for index in range(num_chunks))}
    for number in range(1, NUM_ROUNDS + 1):
        expected |= {topics.PlanTopic(RUN, number), topics.ResultTopic(RUN, number)}
        for node in WORKERS:
            update = topics.UpdateManifestTopic(RUN, number, node)
            num_chunks = len(parse(UpdateManifest, watched.held[str(update)]).chunk_sha256)
            expected |= {update, *(topics.UpdateChunkTopic(RUN, number, node, index) for index in range(num_chunks))}
    assert held == expected


def test_manifests_come_after_their_chunks_and_plans_before_their_updates(watched: WatchedRun) -> None:
    order = [seen.topic for seen in watched.carried]
    chunks = [topic for topic in map(topics.parse_topic, watched.held) if isinstance(topic, CHUNKS)]
    for chunk in chunks:
        match chunk:
            case topics.GlobalChunkTopic(round_number=number):
                assert order.index(str(chunk)) < order.index(str(topics.GlobalManifestTopic(RUN, number)))
            case topics.UpdateChunkTopic(round_number=number, node=node):
                plan, manifest = topics.PlanTopic(RUN, number), topics.UpdateManifestTopic(RUN, number, node)
                assert order.index(str(plan)) < order.index(str(chunk)) < order.index(str(manifest))
    assert {type(chunk) for chunk in chunks} == {*CHUNKS}


def test_results_are_a_hash_chain_of_payloads_and_models(watched: WatchedRun) -> None:
    previous: str | None = None
    model: str | None = None
    for _, payload in watched.messages(topics.ResultTopic):
        result = parse(RoundResult, payload)
        assert result.previous_result_digest == previous
        assert model is None or result.global_digest == model
        previous, model = hashlib.sha256(payload).hexdigest(), result.next_global_digest
    assert model == read_json(watched.out / "summary.json")["global_digest"]


def test_a_node_without_images_says_so_and_sits_out(watched: WatchedRun) -> None:
    first = parse(NodeStatus, next(payload for topic, payload in watched.messages(topics.StatusTopic) if topic.node == IDLER))
    assert first.online
    assert first.num_examples == 0
    assert "no-images.npz" in first.problem
    assert {node for _, payload in watched.messages(topics.PlanTopic) for node in parse(RoundPlan, payload).cohort} == set(WORKERS)


def test_status_shows_the_ended_run_and_its_nodes(watched: WatchedRun) -> None:
    (run,) = watched.status["runs"]
    assert (run["run"], run["phase"], run["round_number"], run["num_rounds"]) == (RUN, "finished", NUM_ROUNDS, NUM_ROUNDS)
    assert {node["node"]: node["online"] for node in watched.status["nodes"]} == dict.fromkeys((*WORKERS, IDLER), False)


def test_metrics_name_every_worker(watched: WatchedRun) -> None:
    lines = [json.loads(line) for line in (watched.out / "metrics.jsonl").read_text().splitlines()]
    assert {line["tags"]["node"] for line in lines if line["measurement"] == "train"} == set(WORKERS)
