"""One enrolled node does anything it likes for a whole run, and the others' run is none the worse.

The short, fixed set that continuous integration runs; `scripts/hostile --seeds 200` runs as many as one likes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.faults.starter import Starter, WarmStarter
from tests.hostile.mallory import ASIDES, UPDATES, draw_plan
from tests.hostile.mutation import mutate_json
from tests.hostile.run import clean_accuracy, withstand
from tests.requirements import require

SEEDS = (1, 4)
"""Between them: an update turned round tenfold, old chunks written over, missing chunks, NaN, old manifests, floods and spying."""


@pytest.fixture(scope="module")
def starter() -> Iterator[Starter]:
    require("mosquitto")
    with WarmStarter() as made:
        yield made


@pytest.fixture(scope="module")
def expected_accuracy(starter: Starter, tmp_path_factory: pytest.TempPathFactory) -> float:
    return clean_accuracy(starter, tmp_path_factory.mktemp("clean") / "run")


@pytest.mark.mosquitto
@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_run_withstands_a_hostile_node(starter: Starter, tmp_path: Path, expected_accuracy: float, seed: int) -> None:
    verdict = withstand(starter, seed, tmp_path / "run", expected_accuracy=expected_accuracy)
    assert verdict.num_rounds >= 2, "a node that is never drawn attacks nothing"


def test_two_hundred_seeds_use_every_attack() -> None:
    drawn = [draw_plan(seed) for seed in range(200)]
    assert drawn[7] == draw_plan(7)
    assert {name for updates, _ in drawn for name in updates} == {*UPDATES}
    assert {name for _, asides in drawn for name in asides} == {*ASIDES}


def test_mutations_are_many_and_repeat() -> None:
    message = json.dumps({"version": 1, "node": "n", "points": [{"fields": {"loss": 0.5}}]}).encode()
    mutated = [mutate_json(Random(seed), message) for seed in range(300)]
    assert mutated[5] == mutate_json(Random(5), message)
    assert len({*mutated}) > 100
