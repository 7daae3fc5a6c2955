"""FedMedian by hand."""

from __future__ import annotations

import numpy as np
import pytest

from federation.errors import LocalProtocolError
from federation.settings import StrategySettings
from federation.strategies import Update, build_strategy

STRATEGY = build_strategy(StrategySettings(name="fedmedian"))


def update(node: str, values: list[float], num_examples: int = 1) -> Update:
    return Update(node=node, num_examples=num_examples, params={"w": np.array(values, dtype=np.float32)})


def median(*updates: Update) -> list[float]:
    global_params = {"w": np.zeros(3, dtype=np.float32)}
    state = STRATEGY.initial_state(global_params)
    aggregation = STRATEGY.aggregate(state=state, global_params=global_params, updates=list(updates))
    assert dict(aggregation.state) == {}
    assert aggregation.params["w"].dtype == np.float32
    return [float(value) for value in aggregation.params["w"]]


def test_of_three_the_middle_one_coordinate_by_coordinate() -> None:
    assert median(update("a", [1, 9, 5]), update("b", [2, 8, 5]), update("c", [3, 1, 4])) == [2, 8, 5]


def test_of_two_the_mean_and_of_one_itself() -> None:
    assert median(update("a", [1, 2, 3]), update("b", [2, 6, 3])) == [1.5, 4, 3]
    assert median(update("a", [1, 2, 3])) == [1, 2, 3]


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
