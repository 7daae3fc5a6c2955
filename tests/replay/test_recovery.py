"""A lost disk: the checkpoint comes back from the broker, and the run ends as if nothing had been lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from aggregator.archive import Archive
from aggregator.broker_rounds import BrokerRounds
from aggregator.recovery import Recovered, recover
from aggregator.replay import Replay
from federation.errors import ArchiveError, CheckpointError
from federation.messages import RunState
from federation.topic_filter import matches
from tests.machines.federation_pair import FederationPair

NUM_ROUNDS = 4


def recover_pair(pair: FederationPair, *, keeps_archive: bool = False) -> Recovered:
    """Delete the aggregator's disk, or all of it but the archive, and rebuild it."""
    shutil.rmtree(pair.folder / "aggregator")
    if not keeps_archive:
        shutil.rmtree(pair.folder / "out")

    def read(filters: Sequence[str], **_bounds: object) -> Iterator[tuple[str, bytes]]:
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
    pair.run(lambda: f"fedmq/v2/pair/{moment}" in pair.broker.retained)
    pair.kill("aggregator")
    recover_pair(pair)
    pair.start_aggregator(is_resuming=True)
    pair.run()
    assert pair.global_digest == undisturbed.global_digest
    assert Archive(tmp_path / "out" / "rounds").round_numbers() == list(range(1, NUM_ROUNDS + 1))


def test_open_rounds_cohort_is_kept(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=NUM_ROUNDS)
    pair.start()
    pair.run(lambda: "fedmq/v2/pair/rounds/3/plan" in pair.broker.retained)
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
    pair.run(lambda: "fedmq/v2/pair/rounds/1/plan" in pair.broker.retained)
    pair.kill("aggregator")
    with pytest.raises(ArchiveError, match="start it again with --resume"):
        recover_pair(pair)
    pair.start_aggregator(is_resuming=True)
    pair.run()
    recover_pair(pair)
    with pytest.raises(CheckpointError, match="continue it with --resume"):
        recover(
            "pair",
            BrokerRounds("pair", lambda filters, **_bounds: pair.broker.retained.items()),  # noqa: ARG005 - the seam's signature
            state_dir=tmp_path / "aggregator",
            out_dir=tmp_path / "out",
            trusted_keys=None,
            now_ns=0,
        )


def test_forged_result_on_the_broker_is_not_believed(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=3)
    pair.start()
    pair.run(lambda: "fedmq/v2/pair/rounds/3/plan" in pair.broker.retained)
    pair.kill("aggregator")
    topic = "fedmq/v2/pair/rounds/1/result"
    pair.broker._retained[topic] = pair.broker.retained[topic].replace(b'"accepted":3', b'"accepted":2')
    with pytest.raises(ArchiveError, match="round 1: result"):
        recover_pair(pair)


# --- a node that was accepted writes over its own update ------------------------------------------


def stopped_at(folder: Path, moment: str) -> FederationPair:
    """Return a federation whose aggregator was killed as soon as a topic was retained."""
    pair = FederationPair(folder, num_rounds=NUM_ROUNDS)
    pair.start()
    pair.run(lambda: f"fedmq/v2/pair/{moment}" in pair.broker.retained)
    pair.kill("aggregator")
    return pair


def spoil(pair: FederationPair, round_number: int, *, how: str = "flip") -> str:
    """Write over chunks of n1's accepted update, as n1 may; return the topic."""
    prefix = f"fedmq/v2/pair/rounds/{round_number}/updates/n1/chunks/"
    retained = pair.broker._retained
    if how == "swap":
        retained[f"{prefix}0"], retained[f"{prefix}1"] = retained[f"{prefix}1"], retained[f"{prefix}0"]
    else:
        retained[f"{prefix}1"] = retained[f"{prefix}1"][:-1] + bytes([retained[f"{prefix}1"][-1] ^ 1])
    return f"{prefix}1"


@pytest.mark.parametrize("how", ["flip", "swap"])
def test_round_spoilt_by_its_node_is_skipped_by_name_and_the_run_goes_on(tmp_path: Path, undisturbed: FederationPair, how: str) -> None:
    pair = stopped_at(tmp_path, "rounds/4/global/manifest")
    spoil(pair, 2, how=how)
    recovered = recover_pair(pair)
    (sentence,) = recovered.skipped
    assert "round 2: updates/n1/chunks/" in sentence
    assert recovered.num_rounds == 2
    pair.start_aggregator(is_resuming=True)
    pair.run()
    assert pair.global_digest == undisturbed.global_digest
    assert Archive(tmp_path / "out" / "rounds").round_numbers() == [1, 3, 4]


def test_newest_round_spoilt_is_skipped_where_the_model_it_ended_with_is_there(tmp_path: Path, undisturbed: FederationPair) -> None:
    pair = stopped_at(tmp_path, "rounds/4/global/manifest")
    spoil(pair, 3)
    recovered = recover_pair(pair)
    assert (recovered.position.round_number, len(recovered.skipped)) == (4, 1)
    pair.start_aggregator(is_resuming=True)
    pair.run()
    assert pair.global_digest == undisturbed.global_digest


def test_newest_round_spoilt_is_led_again_where_that_model_is_not_there(tmp_path: Path, undisturbed: FederationPair) -> None:
    pair = stopped_at(tmp_path, "rounds/3/result")
    spoil(pair, 3)
    # As if it had died between the result and the next round.
    retained = pair.broker._retained
    for topic in [topic for topic in retained if "/rounds/4/" in topic]:
        del retained[topic]
    state = RunState.model_validate_json(retained["fedmq/v2/pair/state"])
    retained["fedmq/v2/pair/state"] = state.model_copy(update={"round_number": 3}).to_payload()
    recovered = recover_pair(pair)
    assert (recovered.position.round_number, recovered.position.cohort) == (3, ())
    pair.start_aggregator(is_resuming=True)
    pair.run()
    assert pair.global_digest == undisturbed.global_digest
    assert Archive(tmp_path / "out" / "rounds").round_numbers() == [1, 2, 3, 4]


def test_spoilt_round_is_taken_from_the_archive_and_published_again(tmp_path: Path, undisturbed: FederationPair) -> None:
    pair = stopped_at(tmp_path, "rounds/4/global/manifest")
    before = dict(pair.broker.retained)
    topic = spoil(pair, 2)
    recovered = recover_pair(pair, keeps_archive=True)
    assert (recovered.repaired, recovered.skipped) == ((2,), ())
    pair.start_aggregator(is_resuming=True)
    pair.run()
    assert pair.broker.retained[topic] == before[topic]
    assert pair.global_digest == undisturbed.global_digest


def test_what_is_archived_is_what_was_verified(tmp_path: Path) -> None:
    """The node writes over its update while the recovery reads: nothing is believed that was read a second time."""
    pair = stopped_at(tmp_path, "rounds/4/global/manifest")
    shutil.rmtree(pair.folder / "aggregator")
    shutil.rmtree(pair.folder / "out")
    num_reads: dict[str, int] = {}

    def read(filters: Sequence[str], **_bounds: object) -> Iterator[tuple[str, bytes]]:
        for topic, payload in list(pair.broker.retained.items()):
            if any(matches(topic_filter, topic) for topic_filter in filters):
                num_reads[topic] = num_reads.get(topic, 0) + 1
                is_again = "/updates/n1/" in topic and num_reads[topic] > 1
                yield topic, payload.replace(b'"num_examples":', b'"num_examples":9') if is_again else payload

    recovered = recover(
        "pair",
        BrokerRounds("pair", read),
        state_dir=tmp_path / "aggregator",
        out_dir=tmp_path / "out",
        trusted_keys=None,
        now_ns=0,
    )
    assert (recovered.num_rounds, recovered.skipped) == (3, ())
    assert [record.result.round_number for record in Replay("pair", Archive(tmp_path / "out" / "rounds")).verify([1, 2, 3])] == [1, 2, 3]


def test_recovered_run_records_its_rounds_under_the_times_they_had(tmp_path: Path) -> None:
    """What a database holds of them is written over itself."""

    def recorded(pair: FederationPair) -> list[str]:
        lines = (pair.folder / "out" / "metrics.jsonl").read_text().splitlines()
        return sorted(line for line in lines if json.loads(line)["measurement"] in {"round", "outcome", "class_accuracy", "confusion"})

    pair = FederationPair(tmp_path, num_rounds=3)
    pair.start()
    pair.run(lambda: "fedmq/v2/pair/rounds/3/plan" in pair.broker.retained)
    pair.kill("aggregator")
    before = recorded(pair)
    assert before
    pair.now += 1000.0
    recover_pair(pair)
    pair.start_aggregator(is_resuming=True)
    assert recorded(pair) == before
    pair.run()
    assert set(before) < set(recorded(pair))


def test_broker_that_has_lost_its_rounds_is_not_said_to_have_lost_nothing(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=2)
    pair.start()
    pair.run()
    pair.kill("aggregator")
    for topic in [topic for topic in pair.broker.retained if "/rounds/" in topic]:
        del pair.broker._retained[topic]
    with pytest.raises(ArchiveError, match="lost the finished rounds of 'pair'"):
        recover_pair(pair)
