"""Partitions: the thesis's own numbers, numbers one can do by hand, and what holds for all of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.errors import DataError
from federation.images import Indices, Labels
from federation.partition import dirichlet, hold_out, iid, quantity, shards, split
from federation.settings import PartitionSettings

PATHMNIST_COUNTS = (9366, 9509, 10360, 10401, 8006, 12182, 7886, 9401, 12885)

THESIS_TABLE_2 = (
    (271, 2, 963, 309, 3030, 746, 1321, 859, 10499),
    (8712, 1569, 8430, 8408, 627, 11320, 5945, 187, 2379),
    (383, 7938, 967, 1684, 4349, 116, 620, 8355, 7),
)


def pathmnist_labels(order: str) -> Labels:
    labels = np.repeat(np.arange(9, dtype=np.int64), PATHMNIST_COUNTS)
    match order:
        case "sorted":
            return labels
        case "reversed":
            return labels[::-1].copy()
        case _:
            return np.random.default_rng(int(order)).permutation(labels)


@pytest.mark.parametrize("order", ["sorted", "reversed", "1", "2"])
def test_dirichlet_reproduces_the_thesis_table(order: str) -> None:
    """All 27 cells of Table 2, whatever order the labels come in."""
    labels = pathmnist_labels(order)
    parts = dirichlet(labels, num_nodes=3, alpha=0.5, seed=42)
    assert [len(part) for part in parts] == [18000, 47577, 24419]
    assert [tuple(np.bincount(labels[part], minlength=9)) for part in parts] == list(THESIS_TABLE_2)
    assert_is_partition(parts, len(labels))


def test_hold_out_gives_the_thesis_sizes() -> None:
    """20 % of each client, stratified: 14,400/3,600, 38,061/9,516 and 19,535/4,884."""
    labels = pathmnist_labels("1")
    pairs = [hold_out(labels, part, 0.2, 42) for part in dirichlet(labels, num_nodes=3, alpha=0.5, seed=42)]
    assert [(len(train), len(held)) for train, held in pairs] == [(14400, 3600), (38061, 9516), (19535, 4884)]
    for counts, (_, held) in zip(THESIS_TABLE_2, pairs, strict=True):
        assert np.all(np.abs(np.bincount(labels[held], minlength=9) - 0.2 * np.array(counts)) < 1)


def test_dirichlet_gives_another_split_for_another_seed() -> None:
    labels = pathmnist_labels("sorted")
    sizes = [[len(part) for part in dirichlet(labels, 3, 0.5, seed)] for seed in (42, 43)]
    assert sizes[0] != sizes[1]


def test_large_alpha_is_nearly_even() -> None:
    labels = np.repeat(np.arange(4, dtype=np.int64), 1000)
    for part in dirichlet(labels, 5, 1e6, 0):
        assert np.all(np.abs(np.bincount(labels[part], minlength=4) - 200) <= 4)


def test_dirichlet_names_the_empty_node_and_what_to_change() -> None:
    labels = np.zeros(30, np.int64)
    with pytest.raises(DataError, match=r"node \d+ gets no examples: raise partition.alpha \(1e-05 now\).*partition.num_nodes"):
        dirichlet(labels, 3, 1e-5, 0)


def test_iid_sizes_differ_by_one() -> None:
    assert sorted(len(part) for part in iid(np.zeros(11, np.int64), 3, 0)) == [3, 4, 4]


def test_shards_of_two_classes_cover_ten() -> None:
    """Five nodes of two classes each hold ten classes once."""
    labels = np.repeat(np.arange(10, dtype=np.int64), 6)
    parts = shards(labels, 5, 2, 0)
    held = [tuple(np.unique(labels[part])) for part in parts]
    assert [len(classes) for classes in held] == [2] * 5
    assert len({label for classes in held for label in classes}) == 10
    assert [len(part) for part in parts] == [12] * 5


@pytest.mark.parametrize(
    ("num_nodes", "classes_per_node", "advice"),
    [(2, 11, "set it to 10 or less"), (3, 2, "raise partition.classes_per_node to 4"), (61, 1, "lower partition.num_nodes to 60")],
)
def test_shards_that_do_not_go_round(num_nodes: int, classes_per_node: int, advice: str) -> None:
    with pytest.raises(DataError, match=advice):
        shards(np.repeat(np.arange(10, dtype=np.int64), 6), num_nodes, classes_per_node, 0)


def test_shards_need_an_example_for_every_holder() -> None:
    labels = np.array([0, 0, 0, 0, 0, 0, 1], np.int64)
    with pytest.raises(DataError, match="class 1 has 1 examples for 3 nodes"):
        shards(labels, 3, 2, 0)


def test_quantity_is_uneven_but_never_empty() -> None:
    sizes = [len(part) for part in quantity(np.zeros(1000, np.int64), 10, 0.1, 0)]
    assert min(sizes) >= 1
    assert max(sizes) > 200


def test_hold_out_keeps_a_lone_example_for_training() -> None:
    """Class 1 has one example: it is trained on, and the validation count comes from the other class."""
    labels = np.array([0] * 9 + [1], np.int64)
    train, held = hold_out(labels, np.arange(10), 0.5, 0)
    assert labels[held].tolist() == [0] * 5
    assert 9 in train


def test_hold_out_of_nothing() -> None:
    train, held = hold_out(np.zeros(5, np.int64), np.arange(5), 0.0, 0)
    assert train.tolist() == [0, 1, 2, 3, 4]
    assert len(held) == 0


def test_hold_out_of_one_example_trains_on_it() -> None:
    train, held = hold_out(np.array([3, 4], np.int64), np.array([1]), 0.2, 0)
    assert (train.tolist(), held.tolist()) == ([1], [])


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "shards", "quantity"])
def test_more_nodes_than_examples(scheme: str) -> None:
    wanted = PartitionSettings.model_validate({"scheme": scheme, "num_nodes": 9, "classes_per_node": 1})
    with pytest.raises(DataError, match=r"lower partition\.num_nodes to 8"):
        split(np.arange(8, dtype=np.int64) % 2, wanted)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(lambda counts: sum(counts) > 0),
    scheme=st.sampled_from(["iid", "dirichlet", "shards", "quantity"]),
    num_nodes=st.integers(1, 6),
    alpha=st.floats(1e-3, 100),
    classes_per_node=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_scheme_deals_everything_once_or_says_why_not(
    counts: list[int], scheme: str, num_nodes: int, alpha: float, classes_per_node: int, seed: int
) -> None:
    """Disjoint, complete, nobody empty, and the same again; or an error that names a setting."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts), dtype=np.int64), counts))
    wanted = PartitionSettings.model_validate(
        {"scheme": scheme, "num_nodes": num_nodes, "alpha": alpha, "classes_per_node": classes_per_node, "seed": seed}
    )
    try:
        parts = split(labels, wanted)
    except DataError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert "partition." in refusal
        return
    assert len(parts) == num_nodes
    assert min(len(part) for part in parts) >= 1
    assert_is_partition(parts, len(labels))
    if scheme == "shards":
        assert {len(np.unique(labels[part])) for part in parts} == {classes_per_node}
    for part, again in zip(parts, split(labels, wanted), strict=True):
        np.testing.assert_array_equal(part, again)


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=80),
    share=st.floats(0, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_hold_out_is_stratified(labels: list[int], share: float, seed: int) -> None:
    """Disjoint, complete, every class keeps one to train on, and no class is a whole example off its share unless it must be."""
    array, indices = np.array(labels, np.int64), np.random.default_rng(seed).permutation(len(labels))
    train, held = hold_out(array, indices, share, seed)
    assert_is_partition([train, held], len(labels))
    assert Counter(array[train].tolist()).keys() == Counter(labels).keys()
    for label, count in Counter(labels).items():
        num_held = int((array[held] == label).sum())
        assert share * count - num_held < 1 or num_held == count - 1
        assert num_held - share * count < 1


def assert_is_partition(parts: list[Indices], num_examples: int) -> None:
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(num_examples))
