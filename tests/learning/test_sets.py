"""Tensor sets: lazy, exact once, refusing what does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from federation.errors import LocalProtocolError
from federation.learning.sets import Sets, TensorSet
from federation.params import Array

A = {"v": np.array([1.0, 2.0], np.float32), "w": np.array([[4.0]], np.float32)}
B = {"v": np.array([0.5, -1.0], np.float32), "w": np.array([[3.0]], np.float32)}


class Counted(Mapping[str, Array]):
    """Counts how often each tensor is read."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self.tensors = tensors
        self.reads: list[str] = []

    def __getitem__(self, name: str) -> Array:
        self.reads.append(name)
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def test_arithmetic_is_by_tensor() -> None:
    a, b = TensorSet(A), TensorSet(B)
    for result, expected in (
        (a + b, [1.5, 1.0]),
        (a - b, [0.5, 3.0]),
        (a * b, [0.5, -2.0]),
        (a / b, [2.0, -2.0]),
        (2.0 * a, [2.0, 4.0]),
        (a / 4, [0.25, 0.5]),
        (-a, [-1.0, -2.0]),
        (a.map(np.square), [1.0, 4.0]),
        (a.zeros(), [0.0, 0.0]),
    ):
        assert list(result["v"]) == expected
        assert result["v"].dtype == result["w"].dtype == np.float32
        assert result.signature == a.signature


def test_nothing_is_read_before_it_is_asked_for_and_nothing_more() -> None:
    counted = Counted(A)
    tensors = TensorSet(counted)
    counted.reads.clear()
    result = (tensors - tensors.zeros()) * 0.5
    assert counted.reads == []
    assert result["w"][0, 0] == 2.0
    assert counted.reads == ["w"]
    held = result.held()
    assert counted.reads == ["w", "v", "w"]
    assert held["v"][1] == 1.0
    assert counted.reads == ["w", "v", "w"]


def test_one_rounding_at_the_end() -> None:
    """float32 all the way would lose the small number: 1e8 + 1 is 1e8 there."""
    big, small = TensorSet({"v": np.array([1e8], np.float32)}), TensorSet({"v": np.array([1.0], np.float32)})
    assert ((big + small) - big)["v"][0] == 1.0


def test_what_leaves_float32_becomes_infinite_without_a_warning() -> None:
    huge = TensorSet({"v": np.array([3e38], np.float32)})
    assert np.isinf((huge * 10.0)["v"][0])


def test_parts_and_joins() -> None:
    a = TensorSet(A)
    parts = a.only(["w"]), a.only(["v"])
    assert sorted(parts[0]) == ["w"]
    joined = parts[0].joined(parts[1])
    assert joined.signature == a.signature
    assert list(joined["v"]) == [1.0, 2.0]
    with pytest.raises(LocalProtocolError, match="in both"):
        a.joined(a)
    with pytest.raises(LocalProtocolError, match="no tensor 'x'"):
        a.only(["x"])
    with pytest.raises(LocalProtocolError, match="can't be combined"):
        _ = a + parts[0]
    with pytest.raises(KeyError):
        _ = parts[0]["v"]


def test_sets_return_new_ones() -> None:
    sets = Sets({"model": A})
    more = sets.with_set("control", TensorSet(B)).plus(model=TensorSet(B))
    assert list(sets) == ["model"]
    assert list(sets["model"]["v"]) == [1.0, 2.0]
    assert list(more["model"]["v"]) == [1.5, 1.0]
    assert sorted(more.signatures) == ["control", "model"]
    assert list(more.only(["control"])) == ["control"]
