"""Bad bytes on every subscribed topic: each is counted and named, none ends a process or fills its memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest

from aggregator.cohort import Expectation
from aggregator.service import AggregatorService
from edge_node.service import EdgeNodeService
from federation import topics
from federation.chunks import ChunkedFile
from federation.codec import digest, write_params
from federation.errors import RejectReason
from federation.memory_transport import InMemoryBroker
from federation.messages import LocalMetrics, NodeStatus, RejectionReport, UpdateManifest, parse
from federation.params import Params
from federation.transport import Delivered
from tests.machines.federation_pair import FederationPair, initial_params
from tests.machines.test_federation import assert_whole, results

NUM_PAYLOADS = 10_000
MAX_GROWTH_BYTES = 8 << 20
"""Far below the sum of the payloads, far above what counters and logs take."""


@pytest.fixture
def pair(tmp_path: Path) -> FederationPair:
    """Return a federation whose first round collects updates."""
    pair = FederationPair(tmp_path)
    pair.start()
    pair.run(until=lambda: any(name.endswith("rounds/1/plan") for name in pair.broker.retained))
    return pair


def payloads(random: Random, valid: bytes) -> Iterator[bytes]:
    """Yield random bytes, random JSON-like text, and valid payloads truncated or with a bit flipped."""
    while True:
        yield random.randbytes(random.randrange(1, 2000))
        yield bytes(random.choices(b'{}[]":,0123456789abcnulltrue\\ ', k=random.randrange(1, 300)))
        yield valid[: random.randrange(len(valid))]
        flipped = bytearray(valid)
        flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
        yield bytes(flipped)


def aggregator_topics() -> list[str]:
    run, node = "pair", "n0"
    return [
        str(topics.StateTopic(run)),
        str(topics.StatusTopic(run, node)),
        str(topics.MetricsTopic(run, node)),
        str(topics.UpdateChunkTopic(run, 1, node, 0)),
        str(topics.UpdateManifestTopic(run, 1, "n9")),
        "fedmq/v3/pair/state",
        "fedmq/v2/pair/rounds/1/updates/n0/chunks/99999999999999999999",
    ]


def node_topics() -> list[str]:
    run = "pair"
    return [
        str(topics.StateTopic(run)),
        str(topics.PlanTopic(run, 1)),
        str(topics.GlobalChunkTopic(run, 1, 0)),
        str(topics.GlobalManifestTopic(run, 1)),
        str(topics.AckTopic(run, 1, "n0")),
        "fedmq/v3/pair/state",
    ]


@pytest.mark.parametrize("who", ["aggregator", "n0"])
def test_ten_thousand_random_payloads_on_every_topic(pair: FederationPair, who: str) -> None:
    random = Random(7)
    seat = pair.aggregator if who == "aggregator" else pair.seats[who]
    names = aggregator_topics() if who == "aggregator" else node_topics()
    valid = next(payload for name, payload in sorted(pair.broker.retained.items()) if name.endswith("plan"))
    assert isinstance(seat.service, AggregatorService | EdgeNodeService)
    tracemalloc.start()
    for index, payload in zip(range(NUM_PAYLOADS), payloads(random, valid), strict=False):
        # The plan topic gets no valid plan again by chance: a flipped bit in a number may well leave one.
        name = names[index % len(names)]
        if name.endswith("/plan") and payload.startswith(b'{"version":2,"run":"pair"') and payload.endswith(b"}"):
            continue
        seat.service.take(Delivered(topic=name, payload=payload, retained=False))
    grown_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown_bytes < MAX_GROWTH_BYTES
    assert seat.service.stopped is None
    counted = seat.service.record.rejections.counts if isinstance(seat.service, AggregatorService) else seat.service.rejections.counts
    assert sum(counted.values()) > NUM_PAYLOADS / 2
    assert set(counted) <= {str(reason) for reason in RejectReason}
    assert {RejectReason.INVALID_MESSAGE, RejectReason.UNSUPPORTED_VERSION} <= set(counted)
    pair.run()
    assert_whole(pair)


def poisoned(name: str) -> Params:
    params = dict(initial_params())
    match name:
        case "nan":
            params["weight"] = np.full_like(params["weight"], np.nan)
        case "infinity":
            params["bias"] = np.full_like(params["bias"], np.inf)
        case "wrong shape":
            params["weight"] = params["weight"].T.copy()
        case "wrong names":
            params = {"weighu": params["weight"], "bias": params["bias"]}
        case "too large":
            params["weight"] = np.zeros((200, 200), dtype=np.float32)
    return params


def upload(pair: FederationPair, sender: str, params: Params, *, folder: Path, **changes: object) -> None:
    """Hand the aggregator a whole update of a node, as that node's own bytes."""
    path = folder / "bad.safetensors"
    write_params(path, params)
    source = ChunkedFile(path, 3000)
    base = pair.global_digest
    facts: dict[str, object] = {
        "run": "pair",
        "round_number": 1,
        "node": sender,
        "total_bytes": source.total_bytes,
        "chunk_bytes": 3000,
        "sha256": source.sha256,
        "chunk_sha256": list(source.chunk_sha256),
        "base_digest": base,
        "num_examples": 10,
        "metrics": LocalMetrics(loss=1.0, download_seconds=0.0, train_seconds=1.0, samples_per_second=1.0),
    }
    manifest = UpdateManifest.model_validate(facts | changes)
    service = pair.aggregator_service
    for index in range(source.num_chunks):
        service.take(Delivered(topic=str(topics.UpdateChunkTopic("pair", 1, sender, index)), payload=source.payload(index), retained=False))
    service.take(Delivered(topic=str(topics.UpdateManifestTopic("pair", 1, sender)), payload=manifest.to_payload(), retained=False))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nan", "non_finite"),
        ("infinity", "non_finite"),
        ("wrong shape", "wrong_shape"),
        ("wrong names", "wrong_shape"),
        ("too large", "wrong_shape|oversized"),
    ],
)
def test_unusable_weights_are_rejected_by_name(tmp_path: Path, name: str, reason: str) -> None:
    pair = FederationPair(tmp_path, num_rounds=1, quorum=0.6, min_nodes=3)
    pair.start()
    pair.run(until=lambda: any(entry.endswith("rounds/1/plan") for entry in pair.broker.retained))
    upload(pair, "n2", poisoned(name), folder=tmp_path)
    pair.run()
    (result,) = results(pair)
    (outcome,) = [outcome for outcome in result.outcomes if outcome.node == "n2"]
    assert outcome.outcome == "rejected"
    assert outcome.reason.split(":")[0] in reason.split("|")
    assert (result.accepted, result.rejected) == (2, 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"chunk_sha256": ["0" * 64]}, "invalid_manifest"),
        ({"total_bytes": 1}, "wrong_shape"),
        ({"total_bytes": 8 << 30}, "oversized"),
        ({"round_number": 2}, "foreign_round"),
        ({"base_digest": "0" * 64}, "foreign_base"),
        ({"node": "n0"}, "invalid_manifest"),
        ({"run": "other"}, "invalid_manifest"),
    ],
)
def test_lying_manifest_is_rejected_by_name(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    pair = FederationPair(tmp_path, num_rounds=1, quorum=0.6, min_nodes=3)
    pair.start()
    pair.run(until=lambda: any(entry.endswith("rounds/1/plan") for entry in pair.broker.retained))
    pair.kill("n2")
    upload(pair, "n2", initial_params(), folder=tmp_path, **changes)
    pair.run()
    (result,) = results(pair)
    (outcome,) = [outcome for outcome in result.outcomes if outcome.node == "n2"]
    assert (outcome.outcome, outcome.reason.split(":")[0]) == ("rejected", reason)


@pytest.mark.parametrize("value", [2**53 + 1, 2**63, 2**63 - 1, 10**30, -1, 1.5, "1e9", None])
@pytest.mark.parametrize("field", ["total_bytes", "chunk_bytes", "num_examples", "round_number"])
def test_absurd_numbers_in_a_manifest_are_refused_as_it_is_parsed(tmp_path: Path, field: str, value: object) -> None:
    pair = FederationPair(tmp_path, num_rounds=1, quorum=0.6, min_nodes=3)
    pair.start()
    pair.run(until=lambda: any(entry.endswith("rounds/1/plan") for entry in pair.broker.retained))
    manifest = {"version": 2, "run": "pair", "round_number": 1, "total_bytes": 100, "chunk_bytes": 1024}
    manifest |= {"sha256": "0" * 64, "chunk_sha256": ["0" * 64], "node": "n2", "base_digest": "0" * 64, "num_examples": 1}
    manifest |= {"metrics": {"loss": 1.0, "download_seconds": 0.0, "train_seconds": 1.0, "samples_per_second": 1.0}, field: value}
    topic = str(topics.UpdateManifestTopic("pair", 1, "n2"))
    pair.aggregator_service.take(Delivered(topic=topic, payload=json.dumps(manifest).encode(), retained=False))
    assert pair.aggregator_service.stopped is None
    pair.run()
    (result,) = results(pair)
    assert {outcome.node: outcome.outcome for outcome in result.outcomes}["n2"] == "rejected"


def test_manifest_that_its_chunks_never_match_is_rejected_in_the_end(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=1, quorum=0.6, min_nodes=3, grace_seconds=90_000.0)
    pair.start()
    pair.run(until=lambda: any(entry.endswith("rounds/1/plan") for entry in pair.broker.retained))
    pair.kill("n2")
    num_chunks = -(-pair.aggregator_service._coordinator._expectation.global_bytes // 3000)
    upload(pair, "n2", initial_params(), folder=tmp_path, sha256="0" * 64, chunk_sha256=["0" * 64] * num_chunks)
    pair.run()
    (result,) = results(pair)
    (outcome,) = [outcome for outcome in result.outcomes if outcome.node == "n2"]
    assert (outcome.outcome, outcome.reason.split(":")[0]) == ("rejected", "corrupt")


def test_bit_flipped_chunk_is_asked_for_again(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=1)
    pair.start()
    pair.run(until=lambda: any("rounds/1/updates/n0/chunks/1" in name for name in pair.broker.retained))
    name = next(name for name in pair.broker.retained if "rounds/1/updates/n0/chunks/1" in name)
    flipped = bytearray(pair.broker.retained[name])
    flipped[-1] ^= 1
    # As a broken link would: the wrong bytes reach the aggregator before the right ones.
    pair.aggregator_service.take(Delivered(topic=name, payload=bytes(flipped), retained=False))
    pair.run()
    assert_whole(pair, num_rounds=1)


def test_chunk_under_another_ones_topic_is_no_chunk(pair: FederationPair) -> None:
    """Taken by its own index, it would be accepted, and the broker would hold a round that nobody can read again."""
    pair.run(until=lambda: any("rounds/1/updates/n0/chunks/1" in name for name in pair.broker.retained))
    name = next(name for name in pair.broker.retained if "rounds/1/updates/n0/chunks/1" in name)
    before = pair.aggregator_service.record.rejections.counts.get(RejectReason.CORRUPT, 0)
    pair.aggregator_service.take(Delivered(topic=name.replace("chunks/1", "chunks/0"), payload=pair.broker.retained[name], retained=False))
    assert pair.aggregator_service.record.rejections.counts[RejectReason.CORRUPT] == before + 1
    pair.run()
    assert_whole(pair)


def test_node_takes_no_global_chunk_under_another_ones_topic(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=1)
    pair.start()
    pair.run(until=lambda: any("rounds/1/global/chunks/1" in name for name in pair.broker.retained))
    name = next(name for name in pair.broker.retained if "rounds/1/global/chunks/1" in name)
    node = pair.seats["n0"].service
    assert isinstance(node, EdgeNodeService)
    node.take(Delivered(topic=name.replace("chunks/1", "chunks/0"), payload=pair.broker.retained[name], retained=False))
    assert node.rejections.counts[RejectReason.CORRUPT] == 1
    pair.run()
    assert_whole(pair, num_rounds=1)


def test_names_with_paths_in_them_never_reach_the_disk(pair: FederationPair, tmp_path: Path) -> None:
    before = sorted(path.name for path in tmp_path.iterdir())
    for name in ("..", "../../x", "a/b", "N0", "é", "x" * 64, ""):
        topic = f"fedmq/v2/pair/rounds/1/updates/{name}/chunks/0"
        pair.aggregator_service.take(Delivered(topic=topic, payload=b"x" * 100, retained=False))
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert pair.aggregator_service.record.rejections.counts[RejectReason.UNKNOWN_TOPIC] == 7


def test_digest_helper_agrees_with_the_file(tmp_path: Path) -> None:
    assert write_params(tmp_path / "x.safetensors", initial_params()) == digest(initial_params())


def test_message_that_finds_a_bug_is_named_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The boundary: before it, one retained status ended the aggregator at each of its starts, and no line named the node."""
    judge = Expectation.unfitness

    def unfitness(self: Expectation, status: NodeStatus) -> str | None:
        if status.node == "n9":
            raise IndexError("a bug")
        return judge(self, status)

    monkeypatch.setattr(Expectation, "unfitness", unfitness)
    pair = FederationPair(tmp_path)
    pair.start()
    status = NodeStatus(node="n9", online=True, instance="i9", num_examples=1, image_shape=[1, 8, 8], num_classes=2)
    topic = str(topics.StatusTopic("pair", "n9"))
    pair.aggregator_service.take(Delivered(topic=topic, payload=status.to_payload(), retained=True))
    pair.run()
    assert_whole(pair)
    report = parse(RejectionReport, pair.broker.retained[str(topics.RejectionsTopic("pair"))])
    (entry,) = report.entries
    assert (entry.node, entry.reason, entry.count, entry.topic) == ("n9", "unhandled", 1, topic)
    assert entry.detail == "IndexError: a bug"


def test_broker_whose_packets_are_too_small_is_said_in_a_sentence(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, broker=InMemoryBroker(max_packet_bytes=600))
    pair.start()
    pair.run()
    assert pair.aggregator_service.stopped is not None
    assert pair.aggregator_service.stopped.failed
    assert "set max_packet_size" in pair.aggregator_service.stopped.reason
