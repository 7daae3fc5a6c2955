"""FedBN: shared layers, and normalisation of each node's own."""

from __future__ import annotations

import numpy as np
import pytest

from federation import models
from federation.errors import SettingsError
from federation.learning.sets import TensorSet
from federation.settings import ModelSettings
from tests.strategies.quadratic import START, Fleet, after_training, assert_close, method, start_model, two_nodes


def test_fedbn_shares_all_but_the_normalisation() -> None:
    """By hand over three rounds: a node's statistic is trained on and on, the other tensors are FedAvg's."""
    fleet = Fleet(method("fedbn"), *two_nodes())
    expected = {name: START[name] for name in ("hidden.weight", "output.weight")}
    own = {"a": START["norm.running_var"], "b": START["norm.running_var"]}
    for _ in range(3):
        fleet.run(1)
        expected = {name: (after_training(w, -1.0, 1.0) + 3 * after_training(w, 3.0, 2.0)) / 4 for name, w in expected.items()}
        own = {"a": after_training(own["a"], -1.0, 1.0), "b": after_training(own["b"], 3.0, 2.0)}
        assert_close(fleet.sets["model"], expected)
        for node, values in own.items():
            assert sorted(fleet.kept[node]["personal"]) == ["norm.running_var"]
            np.testing.assert_allclose(fleet.kept[node]["personal"]["norm.running_var"], values, rtol=1e-5)


def test_fedbn_predicts_on_nodes_alone() -> None:
    fleet = Fleet(method("fedbn"), *two_nodes())
    down = fleet.run(1)
    assert fleet.algorithm.whole_model(down, None, start_model()) is None
    whole = fleet.algorithm.whole_model(down, fleet.kept["a"], start_model())
    assert whole is not None
    assert whole.signature == start_model().signature
    np.testing.assert_array_equal(whole["norm.running_var"], fleet.kept["a"]["personal"]["norm.running_var"])


def test_layers_that_normalise_are_found_by_what_they_count() -> None:
    """ResNet18: the weights and biases of its 20 normalisations stay at home with their statistics, every convolution is shared."""
    network = TensorSet(models.parameters_of(models.build(ModelSettings(name="resnet18"), (3, 28, 28), 8, seed=0)))
    shared = method("fedbn").start(network)["model"]
    assert len(network) - len(shared) == 20 * 4
    assert {"stem.weight", "blocks.2.shortcut.0.weight", "output.bias"} <= set(shared)
    assert not {"stem_norm.weight", "blocks.2.shortcut.1.bias", "blocks.0.norm2.running_mean"} & set(shared)


def test_network_without_normalisation_is_refused() -> None:
    plain = TensorSet({"output.weight": START["output.weight"]})
    with pytest.raises(SettingsError, match="has none: choose resnet18, or fedper"):
        method("fedbn").start(plain)
    named = method("fedbn", personal_layers=["hidden"]).start(start_model())["model"]
    assert sorted(named) == ["norm.running_var", "output.weight"]
