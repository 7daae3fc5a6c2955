"""What finished rounds leave on the broker: within the budget, complete or gone, and back after a crash."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from aggregator.archive import Archive
from aggregator.coordinator import CHECK_SECONDS
from aggregator.ledger_file import LedgerFile
from federation.memory_transport import InMemoryTransport
from tests.machines.federation_pair import FederationPair

BYTES_PER_ROUND = 86_000
"""Of FederationPair's model: the global model and three updates of 19,400 bytes, and their messages."""


def retained_rounds(pair: FederationPair) -> dict[int, int]:
    """Return how many bytes the broker retains of each round."""
    sizes: dict[int, int] = {}
    for topic, payload in pair.broker.retained.items():
        levels = topic.split("/")
        if levels[3] == "rounds":
            sizes[int(levels[4])] = sizes.get(int(levels[4]), 0) + len(payload)
    return sizes


def test_all_rounds_stay_while_the_budget_allows_and_each_is_archived(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=4)
    pair.start()
    pair.run()
    assert sorted(retained_rounds(pair)) == [1, 2, 3, 4, 5]
    archive = Archive(tmp_path / "out" / "rounds")
    assert archive.round_numbers() == [1, 2, 3, 4]
    folder = archive.extract(2, tmp_path / "extracted")
    assert folder.transfers() == ["global", "updates/n0", "updates/n1", "updates/n2"]
    assert folder.result_file.read_bytes() == pair.broker.retained["fedmq/v2/pair/rounds/2/result"]
    assert folder.plan_file.read_bytes() == pair.broker.retained["fedmq/v2/pair/rounds/2/plan"]
    for node in pair.nodes:
        name = f"updates/{node}/manifest.json"
        assert (folder.path / name).read_bytes() == pair.broker.retained[f"fedmq/v2/pair/rounds/2/{name.removesuffix('.json')}"]
        assert json.loads((folder.path / f"acks/{node}.json").read_bytes())["outcome"] == "accepted"
    ledger = LedgerFile(tmp_path / "aggregator" / "pair" / "retained.jsonl").rounds
    assert {number: kept.num_bytes for number, kept in ledger.items()} == {
        number: size for number, size in retained_rounds(pair).items() if number < 5
    }


def test_rounds_above_the_budget_are_cleared_to_the_last_topic_and_stay_in_the_archive(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=7, retained_bytes=2 * BYTES_PER_ROUND)
    pair.start()
    pair.run()
    assert sorted(retained_rounds(pair)) == [6, 7, 8]
    assert Archive(tmp_path / "out" / "rounds").round_numbers() == list(range(1, 8))


def test_no_budget_at_all_never_touches_the_open_round(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=4, retained_bytes=0)
    pair.start()
    pair.run(lambda: pair.broker.retained.get("fedmq/v2/pair/rounds/3/updates/n0/manifest") is not None)
    assert retained_rounds(pair)[3] > 19_000
    pair.run()
    assert pair.aggregator_service.stopped is not None
    assert not pair.aggregator_service.stopped.failed
    # The model that came of the last round is what nodes fetch now: it stays.
    assert sorted(retained_rounds(pair)) == [5]


def test_what_a_node_left_beyond_its_manifest_is_swept_too(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=6, retained_bytes=BYTES_PER_ROUND)
    pair.start()
    stray = InMemoryTransport(pair.broker, client_id="stray", on_event=lambda _event: None)
    stray.start()
    for name in ("chunks/77", "chunks/9999", "oddity", "manifest/deeper"):
        stray.publish(f"fedmq/v2/pair/rounds/1/updates/n1/{name}", b"left behind", retain=True)
    pair.run()
    assert 1 not in retained_rounds(pair)


def test_crash_between_clearing_and_its_end_clears_again(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=6, retained_bytes=BYTES_PER_ROUND)
    pair.start()
    ledger = tmp_path / "aggregator" / "pair" / "retained.jsonl"
    pair.run(lambda: ledger.exists() and '"clearing"' in ledger.read_text())
    pair.kill("aggregator")
    pair.start_aggregator(is_resuming=True)
    pair.run()
    assert 1 not in retained_rounds(pair)
    assert not {2, 3, 4} & retained_rounds(pair).keys()


def test_broker_that_lost_everything_gets_the_finished_rounds_back(tmp_path: Path) -> None:
    untouched = FederationPair(tmp_path / "untouched", num_rounds=5)
    untouched.start()
    untouched.run()
    pair = FederationPair(tmp_path / "crashed", num_rounds=5)
    pair.start()
    pair.run(lambda: "fedmq/v2/pair/rounds/3/updates/n1/manifest" in pair.broker.retained)
    pair.broker.restart(persistence=False)
    pair.run()
    assert pair.global_digest == untouched.global_digest
    topics = {topic for topic in untouched.broker.retained if "/rounds/" in topic}
    assert {topic for topic in pair.broker.retained if "/rounds/" in topic} == topics


def test_broker_that_lost_a_finished_run_gets_its_rounds_back_when_the_run_is_resumed(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=3)
    pair.start()
    pair.run()
    topics = {topic for topic in pair.broker.retained if "/rounds/" in topic}
    pair.kill("aggregator")
    pair.broker.restart(persistence=False)
    pair.start_aggregator(is_resuming=True)
    pair.run()
    assert pair.aggregator_service.stopped is not None
    assert pair.aggregator_service.stopped.reason == "the run had finished already"
    assert {topic for topic in pair.broker.retained if "/rounds/" in topic} == topics


def test_finished_run_that_is_resumed_publishes_none_of_its_rounds_to_a_broker_that_has_them(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=2)
    pair.start()
    pair.run()
    pair.kill("aggregator")
    marked = [topic for topic in pair.broker.retained if "/rounds/1/global/" in topic]
    for topic in marked:
        # Whoever publishes the round again would undo this mark.
        pair.broker._retained[topic] += b"x"
    pair.start_aggregator(is_resuming=True)
    pair.run()
    assert marked
    assert all(pair.broker.retained[topic].endswith(b"x") for topic in marked)


def test_sound_reconnection_publishes_nothing_again(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=2)
    pair.start()
    pair.run(lambda: "fedmq/v2/pair/rounds/1/updates/n1/manifest" in pair.broker.retained)
    before = {topic: payload for topic, payload in pair.broker.retained.items() if "/rounds/1/global/" in topic}
    for topic in before:
        # Whoever publishes the model again would undo this mark.
        pair.broker._retained[topic] = before[topic] + b"x"
    pair.broker.sever("pair-aggregator")
    pair.broker.mend("pair-aggregator")
    over_at = pair.now + 3 * CHECK_SECONDS
    pair.run(lambda: pair.now > over_at or pair.is_over)
    after = {topic: payload for topic, payload in pair.broker.retained.items() if "/rounds/1/global/" in topic}
    assert after == {topic: payload + b"x" for topic, payload in before.items()}


@pytest.mark.parametrize("size", [0, 1_000, 19_399])
@pytest.mark.parametrize("name", ["1.updates.n1.safetensors", "1.global.safetensors", "1.record"])
def test_staged_round_that_is_damaged_is_not_archived_as_good(
    tmp_path: Path, name: str, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Cut short between its staging and its archiving: it stays on the broker, whatever the budget."""
    pair = FederationPair(tmp_path, num_rounds=3, retained_bytes=0)
    pair.start()
    staged = tmp_path / "aggregator" / "pair" / "finished"
    pair.run(until=lambda: (staged / "1.record").exists())
    pair.kill("aggregator")
    file = staged / name
    os.truncate(file, min(size, file.stat().st_size - 1))
    pair.start_aggregator(is_resuming=True)
    pair.run()
    assert "round=1 archive=failed" in caplog.text
    assert Archive(tmp_path / "out" / "rounds").round_numbers() == [2, 3]
    assert retained_rounds(pair)[1] > 4 * 19_000
    assert sorted(retained_rounds(pair)) == [1, 4]
