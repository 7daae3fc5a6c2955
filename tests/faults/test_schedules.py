"""The digest test: whatever fails on the way, a run ends with the same model, and every round of it replays.

The short, fixed set that continuous integration runs, on the shipped processes; `scripts/faults --seeds 100` runs as many as one likes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.run import NUM_ROUNDS, QUORUM_ROUNDS, Bench, bench, play
from tests.faults.schedule import Fault, draw_schedule
from tests.requirements import require

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow]

SEEDS = (3,)
"""Schedules that once failed, each for a reason of its own: see git log -- tests/faults."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    require("mosquitto")
    with bench(tmp_path_factory.mktemp("bench")) as made:
        yield made


@pytest.fixture(scope="module")
def expected_digest(shared: Bench, tmp_path_factory: pytest.TempPathFactory) -> str:
    return play(shared, 0, [], tmp_path_factory.mktemp("undisturbed") / "run", expected_digest=None).digest


@pytest.mark.parametrize("seed", SEEDS)
def test_seeded_schedule_ends_with_the_undisturbed_digest(shared: Bench, tmp_path: Path, expected_digest: str, seed: int) -> None:
    play(shared, seed, draw_schedule(seed, num_rounds=NUM_ROUNDS), tmp_path / "run", expected_digest=expected_digest)


EVERYTHING_DIES_ONCE = [
    Fault(kind="kill", part="aggregator", step="before:result:2"),
    Fault(kind="kill", part="node-0", step="before:update-chunk:2"),
    Fault(kind="kill", part="node-1", step="after:update-manifest:1"),
    Fault(kind="kill", part="node-2", step="received:global-manifest:3"),
    Fault(kind="broker killed", round_number=3, wait_seconds=0.1, seconds=0.5),
]
EVERYTHING_IS_TOLD_TO_END = [
    Fault(kind="terminate", part="aggregator", step="after:plan:1"),
    Fault(kind="terminate", part="aggregator", step="received:update-chunk:8"),
    Fault(kind="terminate", part="node-0", step="received:state:1"),
    Fault(kind="terminate", part="node-0", step="before:update-manifest:1"),
    Fault(kind="terminate", part="node-1", step="received:global-chunk:2"),
    Fault(kind="terminate", part="node-2", step="received:ack:1"),
]
POWER_FAILS = [
    Fault(kind="power cut", part="node-0", round_number=2, wait_seconds=0.3),
    Fault(kind="server's power cut", round_number=2, wait_seconds=0.1, seconds=0.3),
    Fault(kind="server's power cut", round_number=4, wait_seconds=0.0, seconds=0.3),
    Fault(kind="broker wiped", round_number=3, wait_seconds=0.1, seconds=0.3),
]
LINKS_FAIL = [
    Fault(kind="half-open", part="node-0", round_number=1, wait_seconds=0.05, seconds=3.0),
    Fault(kind="deaf", part="node-1", round_number=2, wait_seconds=0.05, seconds=3.0),
    Fault(kind="freeze", part="node-2", round_number=2, wait_seconds=0.05, seconds=3.0),
    Fault(kind="cut", part="aggregator", round_number=4, wait_seconds=0.1),
    Fault(kind="slow", part="node-0", round_number=4, seconds=2.0),
    Fault(kind="duplicates", part="aggregator"),
]


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(EVERYTHING_DIES_ONCE, id="everything dies once"),
        pytest.param(EVERYTHING_IS_TOLD_TO_END, id="everything is told to end"),
        pytest.param(POWER_FAILS, id="power fails"),
        pytest.param(LINKS_FAIL, id="links fail"),
    ],
)
def test_planned_schedule_ends_with_the_undisturbed_digest(
    shared: Bench, tmp_path: Path, expected_digest: str, faults: list[Fault]
) -> None:
    play(shared, 0, faults, tmp_path / "run", expected_digest=expected_digest)


def test_with_a_quorum_every_update_is_accounted_for_exactly_once(shared: Bench, tmp_path: Path) -> None:
    faults = [
        Fault(kind="kill now", part="node-1", round_number=2, wait_seconds=0.02),
        Fault(kind="freeze", part="node-2", round_number=3, wait_seconds=0.02, seconds=4.0),
        Fault(kind="kill", part="aggregator", step="after:ack:8"),
    ]
    play(shared, 1, faults, tmp_path / "run", expected_digest=None, rounds=QUORUM_ROUNDS)


def test_schedules_repeat_and_reach_every_kind_of_fault() -> None:
    assert draw_schedule(5, num_rounds=NUM_ROUNDS) == draw_schedule(5, num_rounds=NUM_ROUNDS)
    drawn = [draw_schedule(seed, num_rounds=NUM_ROUNDS) for seed in range(100)]
    assert {1, 2, 3, 4, 5} == {len(faults) for faults in drawn}
    assert len({fault.kind for faults in drawn for fault in faults}) == 18
