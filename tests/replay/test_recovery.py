"""A lost disk: the checkpoint comes back from the broker, and the run ends as if nothing had been lost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from aggregator.archive import Archive
from aggregator.broker_rounds import BrokerRounds
from aggregator.recovery import Recovered, recover
from federation.errors import ArchiveError, CheckpointError
from federation.topic_filter import matches
from tests.machines.federation_pair import FederationPair

NUM_ROUNDS = 4


def recover_pair(pair: FederationPair) -> Recovered:
    """Delete the aggregator's disk and rebuild it."""
    shutil.rmtree(pair.folder / "aggregator")
    shutil.rmtree(pair.folder / "out")

    def read(filters: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        for topic, payload in list(pair.broker.retained.items()):
            if any(matches(topic_filter, topic) for topic_filter in filters):
                yield topic, payload

    return recover(
        "pair",
        BrokerRounds("pair", read),
        state_dir=pair.folder / "aggregator",
        out_dir=pair.folder / "out",
        trusted_keys=None,
        now_ns=int(pair.now * 1e9),
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> FederationPair:
    pair = FederationPair(tmp_path_factory.mktemp("undisturbed"), num_rounds=NUM_ROUNDS)
    pair.start()
    pair.run()
    return pair


@pytest.mark.parametrize(
    "moment",
    ["rounds/2/plan", "rounds/2/global/manifest", "rounds/3/updates/n1/chunks/2", "rounds/3/updates/n2/manifest", "rounds/3/result"],
)
def test_run_recovered_at_any_moment_ends_with_the_same_digest(tmp_path: Path, undisturbed: FederationPair, moment: str) -> None:
    pair = FederationPair(tmp_path, num_rounds=NUM_ROUNDS)
    pair.start()
    pair.run(lambda: f"fedmq/v1/pair/{moment}" in pair.broker.retained)
    pair.kill("aggregator")
    recover_pair(pair)
    pair.start_aggregator(is_resuming=True)
    pair.run()
    assert pair.global_digest == undisturbed.global_digest
    assert Archive(tmp_path / "out" / "rounds").round_numbers() == list(range(1, NUM_ROUNDS + 1))


def test_open_rounds_cohort_is_kept(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=NUM_ROUNDS)
    pair.start()
    pair.run(lambda: "fedmq/v1/pair/rounds/3/plan" in pair.broker.retained)
    pair.kill("aggregator")
    position = recover_pair(pair).position
    assert (position.round_number, position.cohort, position.epoch) == (3, ("n0", "n1", "n2"), 1)


def test_finished_run_is_recovered_as_finished(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=2)
    pair.start()
    pair.run()
    digest = pair.global_digest
    recovered = recover_pair(pair)
    assert recovered.position.finished
    assert recovered.position.global_digest == digest


def test_nothing_to_recover_and_a_checkpoint_in_the_way_are_said(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=2)
    pair.start()
    pair.run(lambda: "fedmq/v1/pair/rounds/1/plan" in pair.broker.retained)
    pair.kill("aggregator")
    with pytest.raises(ArchiveError, match="start it again with --resume"):
        recover_pair(pair)
    pair.start_aggregator(is_resuming=True)
    pair.run()
    recover_pair(pair)
    with pytest.raises(CheckpointError, match="continue it with --resume"):
        recover(
            "pair",
            BrokerRounds("pair", lambda _filters: pair.broker.retained.items()),
            state_dir=tmp_path / "aggregator",
            out_dir=tmp_path / "out",
            trusted_keys=None,
            now_ns=0,
        )


def test_forged_result_on_the_broker_is_not_believed(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=3)
    pair.start()
    pair.run(lambda: "fedmq/v1/pair/rounds/3/plan" in pair.broker.retained)
    pair.kill("aggregator")
    topic = "fedmq/v1/pair/rounds/1/result"
    pair.broker._retained[topic] = pair.broker.retained[topic].replace(b'"accepted":3', b'"accepted":2')
    with pytest.raises(ArchiveError, match="round 1: result"):
        recover_pair(pair)
