"""Replay repeats what happened bit for bit, and names whatever was changed since."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.archive import Archive
from aggregator.recorded_round import RecordError
from aggregator.replay import Replay, RoundSource, WhatIf
from aggregator.round_folder import RoundFolder
from edge_node.work import LocalUpdate
from federation.codec import digest, file_digest, write_params
from federation.errors import ArchiveError
from federation.learning.algorithms import NodeState, build_algorithm, check_method
from federation.learning.sets import Sets
from federation.messages import RoundPlan, RoundResult, UpdateManifest, parse
from tests.machines.federation_pair import ArithmeticLearner, FederationPair
from tests.replay.recorded_run import RUN, RecordedRun

ALL = range(1, RecordedRun.num_rounds + 1)
ROUNDS = f"fedmq/v2/{RUN}/rounds"


class Diverging(ArithmeticLearner):
    """Sends infinities."""

    def train(self, plan: RoundPlan, sets: Sets, kept: NodeState, should_stop: Callable[[], bool]) -> LocalUpdate:
        """Return the update, all of it infinite."""
        update = super().train(plan, sets, kept, should_stop)
        infinite = Sets({"model": {name: np.full_like(array, np.inf) for name, array in update.sets["model"].items()}})
        return dataclasses.replace(update, sets=infinite)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RecordedRun:
    return RecordedRun(tmp_path_factory.mktemp("recorded"))


def verify(recorded: RecordedRun, source: RoundSource, *, keyless: bool = False) -> list[int]:
    """Replay all rounds; return those that agree."""
    replay = Replay(RUN, source, None if keyless else recorded.trusted_keys)
    return [record.result.round_number for record in replay.verify(ALL)]


def changed_archive(recorded: RecordedRun, tmp_path: Path, round_number: int, change: Callable[[RoundFolder], None]) -> Archive:
    """Return a copy of the archive with one bundle unpacked, changed, and packed again with a digest that fits."""
    archive = Archive(tmp_path / "rounds")
    shutil.copytree(recorded.archive.folder, archive.folder)
    folder = archive.extract(round_number, tmp_path / "unpacked")
    change(folder)
    archive.write(round_number, folder)
    return archive


def test_all_rounds_agree_from_broker_and_archive(recorded: RecordedRun) -> None:
    assert recorded.broker().round_numbers() == recorded.archive.round_numbers() == list(ALL)
    for source in (recorded.broker(), recorded.archive):
        assert verify(recorded, source) == list(ALL)


def test_one_round_alone_and_a_range_agree(recorded: RecordedRun) -> None:
    replay = Replay(RUN, recorded.archive, recorded.trusted_keys)
    assert [record.result.round_number for record in replay.verify([3])] == [3]
    assert [record.result.round_number for record in replay.verify([2, 3, 4])] == [2, 3, 4]


def test_state_names_the_end_of_the_chain(recorded: RecordedRun) -> None:
    state = recorded.broker().state()
    *_, last = Replay(RUN, recorded.broker(), recorded.trusted_keys).verify(ALL)
    assert state.result_digest == last.result_digest
    assert state.final_digest == last.result.next_global_digest == recorded.pair.global_digest
    assert state.run_settings() == recorded.pair.settings


TOPICS = st.sampled_from(
    ["plan", "result", "global/manifest", "global/chunks/0", "global/chunks/3"]
    + [f"updates/n{node}/{name}" for node in range(3) for name in ("manifest", "chunks/0", "chunks/2", "chunks/5")]
)


@settings(max_examples=150, deadline=None)
@given(round_number=st.sampled_from(ALL), name=TOPICS, where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_flipped_byte_on_the_broker_is_found_and_named(
    recorded: RecordedRun, round_number: int, name: str, where: float, flip: int
) -> None:
    topic = f"{ROUNDS}/{round_number}/{name}"
    payload = bytearray(recorded.retained[topic])
    payload[int(where * len(payload))] ^= flip
    with pytest.raises(RecordError) as caught:
        verify(recorded, recorded.broker(**{topic: bytes(payload)}))
    assert caught.value.round_number == round_number
    # A changed manifest may be noticed by the chunk it lies about.
    place = caught.value.place.removesuffix(".json")
    if name.endswith("manifest"):
        assert place.startswith(name.removesuffix("manifest"))
    else:
        assert place == name


@settings(max_examples=100, deadline=None)
@given(round_number=st.sampled_from(ALL), where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_flipped_byte_of_a_result_is_found_in_the_result(recorded: RecordedRun, round_number: int, where: float, flip: int) -> None:
    """Not in what the changed result names, such as an update of a node that never was."""
    topic = f"{ROUNDS}/{round_number}/result"
    payload = bytearray(recorded.retained[topic])
    payload[int(where * len(payload))] ^= flip
    with pytest.raises(RecordError) as caught:
        verify(recorded, recorded.broker(**{topic: bytes(payload)}))
    assert (caught.value.round_number, caught.value.place) == (round_number, "result.json")


@settings(max_examples=60, deadline=None)
@given(round_number=st.sampled_from(ALL[:-1]), name=TOPICS, where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_without_keys_the_hash_chain_alone_finds_any_flipped_byte_before_the_last_round(
    recorded: RecordedRun, round_number: int, name: str, where: float, flip: int
) -> None:
    """But for the signatures themselves, which then nobody looks at and the chain covers in results alone."""
    topic = f"{ROUNDS}/{round_number}/{name}"
    payload = bytearray(recorded.retained[topic])
    position = int(where * len(payload))
    if name.endswith("n0/manifest") or b'"signature"' in payload[:position]:
        return
    payload[position] ^= flip
    with pytest.raises(RecordError):
        verify(recorded, recorded.broker(**{topic: bytes(payload)}), keyless=True)


@settings(max_examples=60, deadline=None)
@given(round_number=st.sampled_from(ALL), is_digest=st.booleans(), where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_flipped_byte_in_the_archive_is_found_and_named(
    recorded: RecordedRun, tmp_path_factory: pytest.TempPathFactory, round_number: int, where: float, flip: int, *, is_digest: bool
) -> None:
    archive = Archive(tmp_path_factory.mktemp("archive") / "rounds")
    shutil.copytree(recorded.archive.folder, archive.folder)
    file = archive.digest_file(round_number) if is_digest else archive.bundle_file(round_number)
    content = bytearray(file.read_bytes())
    content[int(where * len(content))] ^= flip
    file.write_bytes(content)
    with pytest.raises(ArchiveError, match=f"round {round_number}: {round_number:06d}"):
        verify(recorded, archive)


def swap_updates(folder: RoundFolder) -> None:
    for name in ("manifest.json", "tensors.safetensors"):
        first, second = (folder.path / "updates" / node / name for node in ("n0", "n1"))
        first_bytes, second_bytes = first.read_bytes(), second.read_bytes()
        first.write_bytes(second_bytes)
        second.write_bytes(first_bytes)


def lie_about_examples(folder: RoundFolder) -> None:
    file = folder.manifest_file("updates/n2")
    manifest = parse(UpdateManifest, file.read_bytes())
    file.write_bytes(manifest.model_copy(update={"num_examples": 99_999}).to_payload())


def improve_accuracy(folder: RoundFolder) -> None:
    result = parse(RoundResult, folder.result_file.read_bytes())
    assert result.evaluation is not None
    better = result.evaluation.model_copy(update={"accuracy": 0.99})
    folder.result_file.write_bytes(result.model_copy(update={"evaluation": better}).to_payload())


def add_an_update(folder: RoundFolder) -> None:
    shutil.copytree(folder.path / "updates" / "n0", folder.path / "updates" / "n9")


def drop_an_update(folder: RoundFolder) -> None:
    shutil.rmtree(folder.path / "updates" / "n1")


def change_an_ack(folder: RoundFolder) -> None:
    file = folder.path / "acks" / "n1.json"
    file.write_bytes(file.read_bytes().replace(b"accepted", b"rejected"))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (swap_updates, "updates/n0"),
        (lie_about_examples, "updates/n2/manifest"),
        (improve_accuracy, "result"),
        (add_an_update, "updates/n9"),
        (drop_an_update, "updates/n1"),
        (change_an_ack, "acks/n1"),
    ],
)
def test_forged_archive_with_a_digest_that_fits_is_found_and_named(
    recorded: RecordedRun, tmp_path: Path, change: Callable[[RoundFolder], None], place: str
) -> None:
    archive = changed_archive(recorded, tmp_path, 3, change)
    with pytest.raises(RecordError, match=f"round 3: {place}"):
        verify(recorded, archive)


def test_forgery_that_mends_all_digests_is_found_by_the_signature(recorded: RecordedRun, tmp_path: Path) -> None:
    """The last round: nothing follows it in the chain."""
    archive = changed_archive(recorded, tmp_path, RecordedRun.num_rounds, improve_accuracy)
    with pytest.raises(RecordError, match="signature is not aggregator's"):
        verify(recorded, archive)
    assert verify(recorded, archive, keyless=True) == list(ALL)


def test_dropped_and_reordered_rounds_break_the_chain(recorded: RecordedRun, tmp_path: Path) -> None:
    gone = {topic: None for topic in recorded.retained if topic.startswith(f"{ROUNDS}/3/")}
    with pytest.raises(RecordError, match="round 3: result: the broker does not hold it"):
        verify(recorded, recorded.broker(**gone))
    swapped = {}
    for topic, payload in recorded.retained.items():
        for number, other in ((2, 3), (3, 2)):
            if topic.startswith(f"{ROUNDS}/{number}/"):
                swapped[topic.replace(f"/rounds/{number}/", f"/rounds/{other}/")] = payload
    with pytest.raises(RecordError, match=r"round 2: result\.json: it is of another run or round"):
        verify(recorded, recorded.broker(**swapped))
    renamed = Archive(tmp_path / "rounds")
    shutil.copytree(recorded.archive.folder, renamed.folder)
    renamed.bundle_file(4).replace(renamed.bundle_file(3))
    with pytest.raises(ArchiveError, match="round 3: "):
        verify(recorded, renamed)


def test_what_if_with_the_recorded_rule_is_what_happened_and_the_median_is_not(recorded: RecordedRun) -> None:
    replay = Replay(RUN, recorded.archive, recorded.trusted_keys)
    for changed in replay.what_if(ALL, WhatIf(method=check_method({"name": "fedavg"})), None):
        assert changed.next_global_digest == changed.result.next_global_digest
    for changed in replay.what_if(ALL, WhatIf(method=check_method({"name": "fedmedian"})), None):
        assert changed.next_global_digest != changed.result.next_global_digest


def test_what_if_of_the_median_is_the_median_of_the_recorded_updates(recorded: RecordedRun) -> None:
    replay = Replay(RUN, recorded.archive, recorded.trusted_keys)
    (changed,) = replay.what_if([2], WhatIf(method=check_method({"name": "fedmedian"})), None)
    for record in replay.verify([2]):
        median = build_algorithm("fedmedian", {}, num_nodes=3).aggregate(record.sets, record.updates)
        assert changed.next_global_digest == digest(median["model"])


def test_without_a_node_equals_the_round_in_which_its_update_was_rejected(recorded: RecordedRun, tmp_path: Path) -> None:
    (changed,) = Replay(RUN, recorded.archive, recorded.trusted_keys).what_if([1], WhatIf(without={"n1"}), None)
    assert changed.nodes == ("n0", "n2")
    rejected = FederationPair(tmp_path, num_rounds=1, quorum=0.5)
    rejected.learners["n1"] = Diverging("n1")
    rejected.start()
    rejected.run()
    result = parse(RoundResult, rejected.broker.retained[f"{ROUNDS}/1/result"])
    assert [outcome.outcome for outcome in result.outcomes] == ["accepted", "rejected", "accepted"]
    assert changed.next_global_digest == result.next_global_digest


def test_model_of_a_round_is_written_as_the_next_began_with_it(recorded: RecordedRun, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    end = Replay(RUN, recorded.archive, recorded.trusted_keys).write_end(2, lambda params: write_params(path, params))
    assert end.digest == file_digest(path)
    assert end.state_digest is None
    for record in Replay(RUN, recorded.broker(), recorded.trusted_keys).verify([3]):
        assert record.result.global_digest == end.digest


def test_round_below_quorum_is_replayed_as_one(tmp_path: Path) -> None:
    pair = FederationPair(tmp_path, num_rounds=3, deadline_seconds=60.0)
    pair.start()
    pair.run(lambda: f"{ROUNDS}/2/plan" in pair.broker.retained)
    pair.kill("n2")
    pair.run(lambda: f"{ROUNDS}/2/result" in pair.broker.retained)
    pair.start_node("n2")
    pair.run()
    archive = Archive(tmp_path / "out" / "rounds")
    records = list(Replay(RUN, archive).verify([1, 2, 3]))
    assert [record.result.aggregated for record in records] == [True, False, True]
