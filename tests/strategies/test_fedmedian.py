"""FedMedian by hand."""

from __future__ import annotations

import numpy as np
import pytest

from federation.errors import LocalProtocolError, SettingsError
from federation.learning.algorithms import Update, build_algorithm
from federation.learning.sets import Sets
from federation.settings import parse_settings

FEDMEDIAN = build_algorithm("fedmedian", {}, num_nodes=3)


def update(node: str, values: list[float], num_examples: int = 1) -> Update:
    return Update(node=node, num_examples=num_examples, sets=Sets({"model": {"w": np.array(values, dtype=np.float32)}}))


def median(*updates: Update) -> list[float]:
    sets = FEDMEDIAN.aggregate(Sets({"model": {"w": np.zeros(3, dtype=np.float32)}}), list(updates))
    assert list(sets) == ["model"]
    assert sets["model"]["w"].dtype == np.float32
    return [float(value) for value in sets["model"]["w"]]


def test_of_three_the_middle_one_coordinate_by_coordinate() -> None:
    assert median(update("a", [1, 9, 5]), update("b", [2, 8, 5]), update("c", [3, 1, 4])) == [2, 8, 5]


def test_of_four_the_mean_of_the_middle_two() -> None:
    four = (update("a", [1, 2, 3]), update("b", [2, 6, 3]), update("c", [9, 9, 9]), update("d", [-9, -9, -9]))
    assert median(*four) == [1.5, 4, 3]


@pytest.mark.parametrize("num_updates", [1, 2])
def test_of_fewer_than_three_it_refuses_to_be_a_mean(num_updates: int) -> None:
    with pytest.raises(LocalProtocolError, match="3 updates or more"):
        median(*(update(node, [1, 2, 3]) for node in "ab"[:num_updates]))


def test_run_file_that_may_begin_with_fewer_nodes_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"raise rounds\.min_nodes to 3"):
        parse_settings({"method": {"name": "fedmedian"}, "rounds": {"min_nodes": 2}})
    assert parse_settings({"method": {"name": "fedmedian"}, "rounds": {"min_nodes": 3}}).rounds.min_nodes == 3


def test_one_mad_node_of_three_moves_nothing_beyond_the_others() -> None:
    assert median(update("a", [1, 1, 1]), update("b", [2, 2, 2]), update("c", [1e30, -1e30, 1e30], num_examples=10**9)) == [2, 1, 2]


def test_numbers_of_examples_do_not_count() -> None:
    few = median(update("a", [1, 2, 3]), update("b", [4, 5, 6]), update("c", [7, 8, 9]))
    assert few == median(update("a", [1, 2, 3], 100), update("b", [4, 5, 6], 7), update("c", [7, 8, 9], 1))


def test_updates_out_of_order_or_none_are_a_bug() -> None:
    with pytest.raises(LocalProtocolError):
        median(update("b", [1, 2, 3]), update("a", [1, 2, 3]))
    with pytest.raises(LocalProtocolError):
        median()
