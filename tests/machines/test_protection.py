"""The protection of the server: what one update may do, whatever it claims."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.protection import protect
from federation.learning.algorithms import Algorithm, Update, build_algorithm
from federation.learning.distances import distance, norm
from federation.learning.sets import Sets
from federation.params import Params
from federation.settings import ProtectionSettings

GLOBAL: Params = {"a": np.full((3, 4), 1.0, dtype=np.float32), "b": np.full(4, 1.0, dtype=np.float32)}
"""Of norm 4."""

DOWN = Sets({"model": GLOBAL})

FEDAVG: Algorithm = build_algorithm("fedavg", {}, num_nodes=3)

SETTINGS = ProtectionSettings()


def update(node: str, shift: float, num_examples: int = 100) -> Update:
    """Return an update that is `4 * shift` away from the global model."""
    return Update(node=node, num_examples=num_examples, sets=Sets({"model": {name: (GLOBAL[name] + np.float32(shift)) for name in GLOBAL}}))


def weights(*updates: Update, declared: dict[str, int] | None = None, settings: ProtectionSettings = SETTINGS) -> dict[str, int]:
    protected = protect(updates, declared=declared or {}, down=DOWN, uploads=FEDAVG.up, settings=settings)
    assert [contribution.node for contribution in protected.contributions] == [update.node for update in updates]
    kept = {update.node: update.num_examples for update in protected.updates}
    assert kept == {contribution.node: contribution.weight for contribution in protected.contributions if contribution.weight}
    return {contribution.node: contribution.weight for contribution in protected.contributions}


def test_honest_updates_pass_as_they_are() -> None:
    updates = (update("a", 0.1, 10), update("b", 0.2, 100), update("c", 0.05, 40))
    protected = protect(updates, declared={"a": 12, "b": 125, "c": 50}, down=DOWN, uploads=FEDAVG.up, settings=SETTINGS)
    assert protected.updates == updates
    assert [contribution.reason for contribution in protected.contributions] == ["", "", ""]
    assert [contribution.distance for contribution in protected.contributions] == pytest.approx([0.4, 0.8, 0.2])


def test_the_largest_floats_are_left_out_and_named() -> None:
    protected = protect(
        [update("a", 0.1), update("b", 0.1), update("m", 3.4e38, 10**12)], declared={}, down=DOWN, uploads=FEDAVG.up, settings=SETTINGS
    )
    assert [update.node for update in protected.updates] == ["a", "b"]
    (_, _, mad) = protected.contributions
    assert (mad.node, mad.weight) == ("m", 0)
    assert "left out" in mad.reason
    assert np.isfinite(mad.distance)


@pytest.mark.parametrize("others", [0, 1])
def test_one_or_two_updates_are_bounded_by_the_models_own_norm(others: int) -> None:
    """Of two, the median would be half the liar's."""
    honest = [update(f"a{index}", 0.1) for index in range(others)]
    assert weights(*honest, update("m", 2.9))["m"] == 100
    assert weights(*honest, update("m", 3.1))["m"] == 0


def test_an_update_that_stays_where_it_was_makes_no_honest_one_an_outlier() -> None:
    assert weights(update("a", 0.1), update("m", 0.0)) == {"a": 100, "m": 100}
    assert weights(update("a", 0.1), update("b", 0.12), update("m", 0.0)) == {"a": 100, "b": 100, "m": 100}


def test_weight_is_bounded_by_declaration_cap_and_median() -> None:
    three = (update("a", 0.1, 100), update("b", 0.1, 200), update("m", 0.1, 10**12))
    assert weights(*three) == {"a": 100, "b": 200, "m": 20 * 200}
    assert weights(*three, declared={"m": 300}) == {"a": 100, "b": 200, "m": 300}
    assert weights(*three, declared={"m": 10**12}, settings=ProtectionSettings(max_examples=250)) == {"a": 100, "b": 200, "m": 250}
    assert weights(update("a", 0.1, 5), update("m", 0.1, 10**12)) == {"a": 5, "m": SETTINGS.max_examples}


def test_no_settings_bound_nothing() -> None:
    """As in records from before there was a protection."""
    updates = (update("m", 3.4e38, 10**12),)
    assert protect(updates, declared={}, down=DOWN, uploads=FEDAVG.up, settings=None).updates == updates


@given(
    st.lists(
        st.tuples(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(min_value=1, max_value=10**12)),
        min_size=1,
        max_size=5,
    )
)
def test_whatever_one_sends_sums_stay_finite(sent: list[tuple[float, int]]) -> None:
    with np.errstate(over="ignore"):
        updates = [
            Update(
                node=f"n{index}", num_examples=examples, sets=Sets({"model": {name: np.full_like(GLOBAL[name], value) for name in GLOBAL}})
            )
            for index, (value, examples) in enumerate(sent)
        ]
    protected = protect(updates, declared={}, down=DOWN, uploads=FEDAVG.up, settings=SETTINGS)
    if protected.updates:
        mean = FEDAVG.aggregate(DOWN, protected.updates)["model"]
        assert all(np.isfinite(mean[name]).all() for name in mean)
        assert norm(mean) <= (1 + SETTINGS.max_model_ratio) * norm(GLOBAL) * 1.001


def test_distance_adds_in_a_fixed_order() -> None:
    """So that a replay on another processor judges alike: the same figure, by a fold done by hand."""
    values = np.random.default_rng(3).normal(size=1001)
    squares = np.square(values.astype(np.float32).astype(np.float64))
    while squares.size > 1:
        half = squares.size // 2
        odd, squares = squares[2 * half :], squares[:half] + squares[half : 2 * half]
        squares[0] += odd.sum()
    params = {"w": values.astype(np.float32)}
    assert distance(params, {"w": np.zeros(1001, dtype=np.float32)}) == norm(params) == np.sqrt(squares[0])
