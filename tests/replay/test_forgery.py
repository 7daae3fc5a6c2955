"""What a person who can write to broker or archive might try, digests mended where there are any to mend."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.archive import Archive
from aggregator.recorded_round import RecordError
from aggregator.replay import Replay, RoundSource
from aggregator.round_folder import RoundFolder
from federation.errors import ArchiveError
from federation.messages import Ack, GlobalManifest, Message, RoundPlan, RoundResult, UpdateManifest, parse
from tests.replay.recorded_run import RUN, RecordedRun

ALL = range(1, RecordedRun.num_rounds + 1)
ROUNDS = f"fedmq/v2/{RUN}/rounds"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RecordedRun:
    return RecordedRun(tmp_path_factory.mktemp("recorded"))


def verify(recorded: RecordedRun, source: RoundSource, *, keyless: bool = False) -> None:
    """Replay all rounds."""
    for _ in Replay(RUN, source, None if keyless else recorded.trusted_keys).verify(ALL):
        pass


def repacked(recorded: RecordedRun, folder: Path, change: Callable[[int, RoundFolder], None], *, numbers: Mapping[int, int]) -> Archive:
    """Return a copy of the archive in which bundles are unpacked, changed, and packed under another number, with digests that fit."""
    archive = Archive(folder / "rounds")
    shutil.copytree(recorded.archive.folder, archive.folder)
    for source, target in numbers.items():
        unpacked = recorded.archive.extract(source, folder / f"unpacked-{source}")
        change(target, unpacked)
        archive.write(target, unpacked)
    return archive


def is_vouched_for(name: str) -> bool:
    """Acks are the aggregator's last words to nodes; the result says the same under its signature."""
    return not name.startswith("acks/")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_of_any_file_in_a_bundle_is_found_and_named(
    recorded: RecordedRun, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    number = data.draw(st.sampled_from(ALL))
    changed = []

    def flip(_number: int, folder: RoundFolder) -> None:
        name = data.draw(st.sampled_from([name for name in folder.file_names() if is_vouched_for(name)]))
        content = bytearray((folder.path / name).read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        (folder.path / name).write_bytes(content)
        changed.append(name)

    archive = repacked(recorded, tmp_path_factory.mktemp("archive"), flip, numbers={number: number})
    with pytest.raises(RecordError) as caught:
        verify(recorded, archive)
    assert caught.value.round_number == number
    # Tensors are named by their chunk, and a manifest's lie about a chunk by that chunk.
    transfer, _, name = changed[0].rpartition("/")
    assert caught.value.place.startswith(f"{transfer}/" if transfer else name)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_of_any_retained_message_of_a_round_is_found(recorded: RecordedRun, data: st.DataObject) -> None:
    """Every topic of every finished round: no chunk, manifest, plan or result is left out."""
    topics = sorted(topic for topic in recorded.retained if topic.startswith(f"{ROUNDS}/") and f"/{len(ALL) + 1}/" not in topic)
    topic = data.draw(st.sampled_from(topics))
    payload = bytearray(recorded.retained[topic])
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RecordError) as caught:
        verify(recorded, recorded.broker(**{topic: bytes(payload)}))
    assert caught.value.round_number == int(topic.removeprefix(f"{ROUNDS}/").split("/")[0])


def test_two_nodes_updates_swapped_on_the_broker_are_found_and_named(recorded: RecordedRun) -> None:
    prefixes = [f"{ROUNDS}/2/updates/{node}/" for node in ("n0", "n1")]
    swapped = {
        topic.replace(own, other): payload
        for own, other in (prefixes, reversed(prefixes))
        for topic, payload in recorded.retained.items()
        if topic.startswith(own)
    }
    with pytest.raises(RecordError, match="round 2: updates/n0/manifest"):
        verify(recorded, recorded.broker(**swapped))


def test_round_dropped_from_the_archive_is_named(recorded: RecordedRun, tmp_path: Path) -> None:
    archive = repacked(recorded, tmp_path, lambda _number, _folder: None, numbers={})
    archive.bundle_file(3).unlink()
    archive.digest_file(3).unlink()
    with pytest.raises(ArchiveError, match=r"round 3: 000003\.tar\.zst\S* is missing"):
        verify(recorded, archive)


def renumber(number: int, folder: RoundFolder) -> None:
    """Say that a round is another one, in all its messages, and mend every digest that covers what was changed."""
    kinds: dict[str, type[Message]] = {"plan.json": RoundPlan, "global/manifest.json": GlobalManifest}
    for name in folder.file_names():
        kind = UpdateManifest if name.startswith("updates/") else Ack if name.startswith("acks/") else kinds.get(name)
        if kind is not None and name.endswith(".json"):
            rewrite(folder.path / name, kind, round_number=number)
    plan_digest = hashlib.sha256(folder.plan_file.read_bytes()).hexdigest()
    rewrite(folder.result_file, RoundResult, round_number=number, plan_digest=plan_digest)


def rewrite(file: Path, kind: type[Message], **changes: Any) -> None:
    file.write_bytes(parse(kind, file.read_bytes()).model_copy(update=changes).to_payload())


def test_two_rounds_that_change_places_break_signatures_and_chain(recorded: RecordedRun, tmp_path: Path) -> None:
    archive = repacked(recorded, tmp_path, renumber, numbers={2: 3, 3: 2})
    with pytest.raises(RecordError, match=r"round 2: result\.json: the signature is not aggregator's"):
        verify(recorded, archive)
    with pytest.raises(RecordError, match=r"round 2: result\.json: it follows another result than that of round 1: the chain is broken"):
        verify(recorded, archive, keyless=True)
