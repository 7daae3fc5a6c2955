"""Measuring: every engine sees every image in order, turn by turn, within the budget."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from federation.errors import DataError
from federation.images import Images
from federation.inference.measurement import (
    MIN_SINGLE_RUNS,
    NUM_WARM_UP_RUNS,
    Contender,
    choose_batch_size,
    measure_latency,
    measure_share,
    peak_memory_growth,
)
from tests.inference.networks import noise


def recorder(name: str, runs: list[tuple[str, int]], *, seconds: Callable[[int], float] = lambda _: 0.0) -> Contender:
    """Return an engine whose logits are the pixels, that notes each run and takes `seconds(batch size)`."""

    def run(batch: Images) -> NDArray[np.float32]:
        runs.append((name, len(batch)))
        time.sleep(seconds(len(batch)))
        return batch.reshape(len(batch), -1).astype(np.float32)

    return Contender(name=name, prepare=lambda images: images, run=run)


def test_logits_come_back_in_image_order_whatever_the_batch() -> None:
    images = noise((1, 2, 2), 7)
    shares = measure_share([recorder("a", [])], images, batch_size=3, budget_seconds=60)
    assert np.array_equal(shares["a"].logits, images.reshape(7, 4).astype(np.float32))


def test_engines_take_turns_in_another_order_each_pass() -> None:
    runs: list[tuple[str, int]] = []
    measure_share([recorder("a", runs), recorder("b", runs)], noise((1, 2, 2), 2), batch_size=2, budget_seconds=60, max_passes=2)
    assert [name for name, _ in runs] == ["a", "b", "a", "b", "b", "a"]  # warm-up, first pass, second pass


def test_a_spent_budget_leaves_one_pass_and_the_fewest_single_runs() -> None:
    runs: list[tuple[str, int]] = []
    images = noise((1, 2, 2), 4)
    measure_share([recorder("a", runs)], images, batch_size=4, budget_seconds=0)
    assert len(runs) == 2
    measure_latency([recorder("a", runs)], images, budget_seconds=0)
    assert len(runs) == 2 + MIN_SINGLE_RUNS + NUM_WARM_UP_RUNS


def test_data_handling_counts_in_seconds_and_not_in_engine_seconds() -> None:
    def prepare(images: Images) -> Images:
        time.sleep(0.02)
        return images

    slow = Contender(name="a", prepare=prepare, run=recorder("a", []).run)
    share = measure_share([slow], noise((1, 2, 2), 2), batch_size=1, budget_seconds=0)["a"]
    assert share.seconds - share.engine_seconds >= 0.04


def test_percentiles_are_in_order() -> None:
    latency = measure_latency([recorder("a", [])], noise((1, 2, 2), 3), budget_seconds=0)["a"]
    assert 0 < latency.p50_ms <= latency.p95_ms <= latency.p99_ms


def test_the_batch_with_most_images_a_second_is_chosen() -> None:
    """A cost per call makes large batches pay; where small ones are cheaper an image, the smallest wins."""
    images = noise((1, 2, 2), 300)
    assert choose_batch_size(recorder("a", [], seconds=lambda size: 0.004 + 0.00001 * size), images) == 256
    assert choose_batch_size(recorder("a", [], seconds=lambda size: 0.004 * size**1.5), images) == 1
    assert choose_batch_size(recorder("a", [], seconds=lambda _: 0.004), images[:9]) == 8


def test_no_images_is_an_error() -> None:
    nothing = noise((1, 2, 2), 0)
    with pytest.raises(DataError):
        measure_share([recorder("a", [])], nothing, batch_size=1, budget_seconds=1)
    with pytest.raises(DataError):
        measure_latency([recorder("a", [])], nothing, budget_seconds=1)


def test_memory_growth_is_at_least_what_was_filled() -> None:
    growth = peak_memory_growth(lambda: np.ones(8 << 20, np.uint8))
    assert growth is None or growth >= 7 << 20


def test_one_batch_that_had_to_wait_makes_no_engine_a_hundred_times_slower() -> None:
    """A node trains meanwhile: the sum over a set once made a speed-up of 129 of one stalled batch."""
    stalled = iter([0.0, 0.0, 0.5])  # the warm-up, the first batch, and the one that has to wait

    def waits(_size: int) -> float:
        return next(stalled, 0.0)

    images = noise((1, 2, 2), 16)
    contenders = [recorder("stalled", [], seconds=waits), recorder("even", [])]
    shares = measure_share(contenders, images, batch_size=2, budget_seconds=0, max_passes=1)
    assert shares["stalled"].seconds < 0.1
