"""Probation: who is tried on the server's images, and who is left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aggregator.probation import MAX_TRIALS, leave_out, nodes_on_probation, try_updates
from aggregator.protection import Contribution, Protected
from federation.learning.algorithms import Update, build_algorithm
from federation.learning.sets import Sets
from federation.messages import Evaluation
from federation.settings import ProtectionSettings

SETTINGS = ProtectionSettings()
DOWN = Sets({"model": {"w": np.zeros(1, dtype=np.float32)}})

UPLOADS = build_algorithm("fedavg", {}, num_nodes=3).up


def protected(**influences: float) -> Protected:
    """Return updates of weight 1 at these distances."""
    updates = tuple(
        Update(node=node, num_examples=1, sets=Sets({"model": {"w": np.full(1, value, dtype=np.float32)}}))
        for node, value in influences.items()
    )
    contributions = tuple(Contribution(node=node, weight=1, distance=abs(value)) for node, value in influences.items())
    return Protected(updates=updates, contributions=contributions)


def mean(updates: Sequence[Update]) -> Sets:
    return Sets({"model": {"w": np.mean([update.sets["model"]["w"] for update in updates], axis=0)}})


class Images:
    """Says that a model is the better the greater its one weight, and counts how often it is asked."""

    def __init__(self) -> None:
        self.num_asked = 0

    def evaluate(self, sets: Sets) -> Evaluation:
        """Return a score between 0 and 1."""
        self.num_asked += 1
        accuracy = float(np.clip(sets["model"]["w"][0] + 0.7, 0.0, 1.0))
        scores = {"accuracy": accuracy, "f1_macro": accuracy, "f1_weighted": accuracy, "loss": 1.0 - accuracy}
        return Evaluation.model_validate({"num_examples": 1, "class_accuracy": [], "confusion_matrix": [], **scores})


def tried(updates: Protected, images: Images, *, min_updates: int = 1) -> list[str]:
    left = try_updates(
        updates, aggregate=mean, evaluate=images.evaluate, down=DOWN, uploads=UPLOADS, settings=SETTINGS, min_updates=min_updates
    )
    assert [update.node for update in left.updates] == [entry.node for entry in left.contributions if entry.weight]
    return [update.node for update in left.updates]


def suspects(updates: Protected) -> list[str]:
    return nodes_on_probation(updates, down=DOWN, uploads=UPLOADS, settings=SETTINGS)


def test_an_update_against_the_others_is_on_probation_however_small() -> None:
    assert suspects(protected(a=1.0, b=1.0, against=-0.1)) == ["against"]
    assert suspects(protected(a=1.0, b=1.0, still=0.0)) == []


def test_similar_updates_are_never_tried() -> None:
    images = Images()
    assert tried(protected(a=0.05, b=0.1, c=0.29), images) == ["a", "b", "c"]
    assert images.num_asked == 0


def test_a_large_update_that_helps_stays_and_one_that_harms_goes() -> None:
    assert tried(protected(a=0.1, b=0.1, c=0.1, large=1.0), Images()) == ["a", "b", "c", "large"]
    assert tried(protected(a=0.1, b=0.1, c=0.1, turned=-1.0), Images()) == ["a", "b", "c"]


def test_the_heaviest_is_tried_first_and_the_least_number_stays() -> None:
    updates = protected(a=0.1, b=0.1, c=0.1, bad=-1.0, worse=-2.0)
    assert suspects(updates) == ["worse", "bad"]
    assert tried(updates, Images()) == ["a", "b", "c"]
    assert tried(updates, Images(), min_updates=4) == ["a", "b", "c", "bad"]
    assert tried(updates, Images(), min_updates=5) == ["a", "b", "c", "bad", "worse"]


def test_two_updates_have_no_median_and_a_server_without_images_tries_nobody() -> None:
    assert suspects(protected(a=0.1, bad=-9.0)) == []
    updates = protected(a=0.1, b=0.1, c=0.1, bad=-1.0)
    left = try_updates(updates, aggregate=mean, evaluate=lambda _params: None, down=DOWN, uploads=UPLOADS, settings=SETTINGS, min_updates=1)
    assert left == updates
    assert nodes_on_probation(updates, down=DOWN, uploads=UPLOADS, settings=None) == []


@given(st.lists(st.just(0.0) | st.floats(1e-3, 1e6), max_size=40))
def test_fewer_than_half_are_tried_and_leaving_out_names_them(distances: list[float]) -> None:
    updates = protected(**{f"n{index:02d}": value for index, value in enumerate(distances)})
    tried = suspects(updates)
    assert len(tried) <= min(MAX_TRIALS, len(distances) // 2)
    left = leave_out(updates, tried, "why")
    assert [entry.node for entry in left.contributions if entry.reason == "why"] == sorted(tried)
