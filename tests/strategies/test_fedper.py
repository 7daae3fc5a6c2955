"""FedPer: shared layers below personal ones."""

from __future__ import annotations

import numpy as np
import pytest

from federation.errors import SettingsError
from tests.strategies.quadratic import START, Fleet, after_training, assert_close, method, start_model, two_nodes


def test_fedper_shares_the_lower_layers_and_keeps_the_last_one() -> None:
    fleet = Fleet(method("fedper"), *two_nodes())
    for num_rounds in range(1, 4):
        fleet.run(1)
        assert sorted(fleet.sets["model"]) == ["hidden.weight", "norm.running_var"]
        for node, (optimum, steepness) in {"a": (-1.0, 1.0), "b": (3.0, 2.0)}.items():
            own = START["output.weight"]
            for _ in range(num_rounds):
                own = after_training(own, optimum, steepness)
            np.testing.assert_allclose(fleet.kept[node]["personal"]["output.weight"], own, rtol=1e-5)
    expected = {name: START[name] for name in ("hidden.weight", "norm.running_var")}
    for _ in range(3):
        expected = {name: (after_training(w, -1.0, 1.0) + 3 * after_training(w, 3.0, 2.0)) / 4 for name, w in expected.items()}
    assert_close(fleet.sets["model"], expected)


def test_fedper_predicts_on_nodes_alone() -> None:
    fleet = Fleet(method("fedper"), *two_nodes())
    down = fleet.run(1)
    assert fleet.algorithm.whole_model(down, None, start_model()) is None
    whole = fleet.algorithm.whole_model(down, fleet.kept["a"], start_model())
    assert whole is not None
    assert whole.signature == start_model().signature
    np.testing.assert_array_equal(whole["output.weight"], fleet.kept["a"]["personal"]["output.weight"])
    fresh = fleet.algorithm.whole_model(down, {}, start_model())
    assert fresh is not None
    np.testing.assert_array_equal(fresh["output.weight"], START["output.weight"])


@pytest.mark.parametrize(("layers", "text"), [(["head"], "no layer 'head'; it has hidden"), (["output", "hidden", "norm"], "all layers")])
def test_fedper_layers_must_fit_the_network(layers: list[str], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        method("fedper", personal_layers=layers).start(start_model())
