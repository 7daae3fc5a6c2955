"""Class-aware aggregation by hand, over several rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from federation.errors import SettingsError
from federation.learning.algorithms import Update
from federation.learning.algorithms.class_aware import class_weights
from federation.learning.codecs import CODECS, build_codec, decode_sets, encode_sets
from federation.learning.sets import Sets, TensorSet
from tests.strategies.quadratic import START, Fleet, QuadraticTrainer, after_training, assert_close, method, start_model


def node(name: str, optimum: float, counts: list[int] | None, *, num_examples: int | None = None) -> QuadraticTrainer:
    """Return a node of two classes: START's `output` has two rows."""
    trainer = QuadraticTrainer(name, optimum=optimum, num_examples=num_examples or sum(counts or [4]))
    trainer.label_counts = counts
    return trainer


def run_by_hand(optima: list[float], examples: list[int], rows: list[list[float]], num_rounds: int) -> dict[str, Any]:
    """Return the model after some rounds, in float64: `rows[k][c]` is how much node k counts for class c."""
    expected = {name: array.astype(np.float64) for name, array in START.items()}
    for _ in range(num_rounds):
        trained = [{name: after_training(w, optimum, 1.0) for name, w in expected.items()} for optimum in optima]
        after = {name: np.average([model[name] for model in trained], axis=0, weights=examples) for name in expected}
        for c in range(2):
            after["output.weight"][c] = np.average(
                [model["output.weight"][c] for model in trained], axis=0, weights=[row[c] for row in rows]
            )
        expected = after
    return expected


def test_a_row_is_averaged_by_who_has_seen_its_class() -> None:
    fleet = Fleet(method("class_aware"), node("a", -1.0, [6, 2]), node("b", 3.0, [0, 4]), node("c", 0.5, [3, 1]))
    expected = run_by_hand([-1.0, 3.0, 0.5], [8, 4, 4], [[6, 2], [0, 4], [3, 1]], 3)
    assert_close(fleet.run(3)["model"], expected)
    assert not np.any([fleet.sets["classes"][name] for name in fleet.sets["classes"]]), "no node is told another's mix"


def test_a_site_that_tells_nothing_counts_as_the_others_mix() -> None:
    """The first two together hold 6 of class 0 and 6 of class 1 among 12: the third's 8 examples are taken for 4 and 4."""
    fleet = Fleet(method("class_aware"), node("a", -1.0, [6, 2]), node("b", 3.0, [0, 4]), node("c", 0.5, None, num_examples=8))
    assert_close(fleet.run(3)["model"], run_by_hand([-1.0, 3.0, 0.5], [8, 4, 8], [[6, 2], [0, 4], [4, 4]], 3))


def test_if_nobody_tells_it_is_fedavg() -> None:
    nodes = node("a", -1.0, None, num_examples=3), node("b", 3.0, None, num_examples=1)
    silent, fedavg = Fleet(method("class_aware"), *nodes), Fleet(method("fedavg"), *nodes)
    assert_close(silent.run(3)["model"], fedavg.run(3)["model"])


def test_a_class_that_nobody_has_is_averaged_by_examples() -> None:
    fleet = Fleet(method("class_aware"), node("a", -1.0, [3, 0]), node("b", 3.0, [1, 0]))
    assert_close(fleet.run(2)["model"], run_by_hand([-1.0, 3.0], [3, 1], [[3, 3], [1, 1]], 2))


@pytest.mark.parametrize("counts", [[5, 3], [8, 0], [1, 0], None])
def test_a_class_mix_is_as_long_at_every_node(counts: list[int] | None) -> None:
    """The protection of the server bounds lengths by the cohort's median: no honest mix may meet it, and none tells a size."""
    (update,) = Fleet(method("class_aware"), node("a", -1.0, counts, num_examples=8)).updates()
    mix = update.sets["classes"]
    assert np.sqrt(sum(float(mix[name][0]) ** 2 for name in mix)) == pytest.approx(1.0)


def test_what_a_node_claims_of_its_classes_counts_within_its_examples() -> None:
    """The protection bounds the examples; the claimed mix only says how they are spread."""
    mixes = {"a": [30.0, 40.0], "b": [0.6, 0.8], "c": [0.0, 0.0]}
    updates = [
        Update(
            node=name,
            num_examples=100,
            sets=Sets({"classes": TensorSet({f"class.{index}": np.array([root], np.float32) for index, root in enumerate(roots)})}),
        )
        for name, roots in mixes.items()
    ]
    for weights in class_weights(updates):
        np.testing.assert_allclose(weights, [1 / 3, 1 / 3], rtol=1e-6)


@pytest.mark.parametrize("layer", ["head", "hidden.bias"])
def test_classifier_must_be_in_the_network(layer: str) -> None:
    with pytest.raises(SettingsError, match=f"no layer '{layer}' whose tensors have a row for each class"):
        method("class_aware", classifier=layer).start(start_model())


@pytest.mark.parametrize("name", sorted(CODECS))
def test_a_class_mix_survives_every_codec(name: str) -> None:
    """A codec that sends the largest values alone sends each class's, for it is a tensor of its own; nothing of one is left for later."""
    (update,) = Fleet(method("class_aware"), node("a", -1.0, [97, 3])).updates()
    mix, codec = update.sets.only(["classes"]), build_codec(name, {})
    kept: dict[str, TensorSet] = {}
    for round_number in range(3):
        wire = encode_sets(codec, mix, bases={}, kept=kept, purpose=str(round_number))
        back = decode_sets(codec, wire, mix.signatures, bases={})
        for tensor in mix["classes"]:
            np.testing.assert_allclose(back["classes"][tensor], mix["classes"][tensor], rtol=1e-3)
