"""What every method keeps to, by one suite over the table of methods."""

from __future__ import annotations

import tomllib
from dataclasses import replace

import numpy as np
import pytest
import tomli_w

from federation.codec import digest, encode
from federation.errors import LocalProtocolError
from federation.learning.algorithms import ALGORITHMS, Algorithm, Update, build_algorithm
from federation.learning.codecs import build_codec, decode_sets, encode_sets, wire_signature
from federation.learning.sets import Sets
from federation.params import signature_of
from tests.strategies.quadratic import Fleet, QuadraticTrainer, held

FLOAT32 = build_codec("float32", {})


@pytest.fixture(params=sorted(ALGORITHMS))
def algorithm(request: pytest.FixtureRequest) -> Algorithm:
    return build_algorithm(request.param, {}, num_nodes=3)


def fleet_of(algorithm: Algorithm) -> Fleet:
    nodes = "abcde"[: max(3, algorithm.min_updates)]
    trainers = [QuadraticTrainer(node, optimum=float(index), num_examples=index + 1) for index, node in enumerate(nodes)]
    for index, trainer in enumerate(trainers):
        trainer.label_counts = [index + 1, 1] if index else None
    return Fleet(algorithm, *trainers)


def file_of(sets: Sets) -> bytes:
    return encode(encode_sets(FLOAT32, sets, bases={}, kept={}, purpose="test"))


def test_settings_can_be_written_into_a_run_file(algorithm: Algorithm) -> None:
    """A run's folder holds its run file with every setting spelt out; TOML knows no null."""
    written = tomli_w.dumps(algorithm.settings.model_dump(mode="json"))
    assert type(algorithm.settings).model_validate(tomllib.loads(written)) == algorithm.settings


def test_sets_keep_their_names_and_signatures(algorithm: Algorithm) -> None:
    fleet = fleet_of(algorithm)
    before = fleet.sets.signatures
    assert set(algorithm.down) <= set(before)
    assert fleet.run(2).signatures == before


def test_updates_are_of_the_declared_sets(algorithm: Algorithm) -> None:
    fleet = fleet_of(algorithm)
    for update in fleet.updates():
        assert sorted(update.sets) == sorted(algorithm.up)
        for name, upload in algorithm.up.items():
            assert upload.like in algorithm.down
            assert update.sets[name].signature == fleet.sets[upload.like].signature


def test_same_history_gives_the_same_bits(algorithm: Algorithm) -> None:
    first, second = fleet_of(algorithm), fleet_of(algorithm)
    assert file_of(first.run(3)) == file_of(second.run(3))


def test_lazy_sets_and_sets_from_a_file_give_the_same_bits(algorithm: Algorithm) -> None:
    """What the aggregator computes from files is what a replay computes from others."""
    fleet = fleet_of(algorithm)
    fleet.run(2)
    updates = fleet.updates()
    lazy = file_of(algorithm.aggregate(fleet.sets, updates))
    assert file_of(algorithm.aggregate(held(fleet.sets), [replace(update, sets=held(update.sets)) for update in updates])) == lazy


def test_order_of_the_updates_is_the_callers_duty(algorithm: Algorithm) -> None:
    fleet = fleet_of(algorithm)
    updates = fleet.updates()
    for wrong in ([], updates[::-1], [updates[0], updates[0]]):
        with pytest.raises(LocalProtocolError):
            algorithm.aggregate(fleet.sets, wrong)


def test_node_state_is_kept_where_it_is_declared(algorithm: Algorithm) -> None:
    fleet = fleet_of(algorithm)
    fleet.run(2)
    assert all(bool(kept) == algorithm.keeps_node_state for kept in fleet.kept.values())


def test_an_update_that_did_not_count_leaves_no_trace(algorithm: Algorithm) -> None:
    """A node whose kept state is put back sends the very same update again."""
    fleet = fleet_of(algorithm)
    fleet.run(1)
    before = {name: tensors.held() for name, tensors in fleet.kept["a"].items()}
    (first,) = fleet.updates("a")
    first_bytes = file_of(first.sets)
    fleet.kept["a"] = before
    (again,) = fleet.updates("a")
    assert file_of(again.sets) == first_bytes


def test_sets_travel_as_one_file_and_come_back(algorithm: Algorithm) -> None:
    fleet = fleet_of(algorithm)
    for update in fleet.updates():
        wire = encode_sets(FLOAT32, update.sets, bases={}, kept={}, purpose="test")
        assert signature_of(wire) == wire_signature(FLOAT32, update.sets.signatures)
        back = decode_sets(FLOAT32, wire, update.sets.signatures, bases={})
        assert file_of(back) == file_of(update.sets)


def test_a_model_travels_as_the_file_that_people_use() -> None:
    sets = fleet_of(build_algorithm("fedavg", {}, num_nodes=3)).sets
    assert digest(encode_sets(FLOAT32, sets, bases={}, kept={}, purpose="test")) == digest(sets["model"])


def test_identical_nodes_and_plain_steps_end_where_one_node_would(algorithm: Algorithm) -> None:
    """Nodes with one loss: nothing to disagree about, so every method comes nearer to its optimum."""
    fleet = Fleet(algorithm, *(QuadraticTrainer(node, optimum=2.0) for node in "abcde"))
    before = np.abs(fleet.sets["model"]["hidden.weight"] - 2.0).sum()
    assert np.abs(fleet.run(5)["model"]["hidden.weight"] - 2.0).sum() < before


def test_updates_say_what_their_training_was_like(algorithm: Algorithm) -> None:
    updates: list[Update] = fleet_of(algorithm).updates()
    assert [update.trained.num_steps if update.trained else 0 for update in updates] == [4] * len(updates)
