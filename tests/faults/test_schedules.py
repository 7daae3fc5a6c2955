"""The digest test: whatever fails on the way, a run ends with the same model, and every round of it replays.

The short, fixed set that continuous integration runs; `scripts/faults --seeds 100` runs as many as one likes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.run import NUM_ROUNDS, run_schedule, undisturbed_digest
from tests.faults.schedule import Fault, draw_schedule
from tests.requirements import require

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow]

SEEDS = (6, 10, 15, 17)
"""Schedules that once failed, each for a reason of its own: see git log -- tests/faults."""


@pytest.fixture(scope="module")
def expected_digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    require("mosquitto")
    return undisturbed_digest(tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.mark.parametrize("seed", SEEDS)
def test_seeded_schedule_ends_with_the_undisturbed_digest(tmp_path: Path, expected_digest: str, seed: int) -> None:
    run_schedule(seed, draw_schedule(seed, num_rounds=NUM_ROUNDS), tmp_path / "run", expected_digest=expected_digest)


EVERYTHING_DIES_ONCE = [
    Fault(kind="kill", part="aggregator", step="before:result:2"),
    Fault(kind="kill", part="node-0", step="before:update-chunk:2"),
    Fault(kind="kill", part="node-1", step="after:update-manifest:1"),
    Fault(kind="kill", part="node-2", step="received:global-manifest:3"),
    Fault(kind="broker killed", round_number=3, wait_seconds=0.1, seconds=0.5),
]
ALL_LINKS_FAIL = [
    Fault(kind="half-open", part="node-0", round_number=1, wait_seconds=0.05, seconds=3.0),
    Fault(kind="deaf", part="node-1", round_number=2, wait_seconds=0.05, seconds=3.0),
    Fault(kind="mute", part="node-2", round_number=2, wait_seconds=0.05, seconds=3.0),
    Fault(kind="cut", part="aggregator", round_number=4, wait_seconds=0.1),
    Fault(kind="slow", part="node-0", round_number=4, seconds=2.0),
]
FROZEN_AND_REPEATED = [
    Fault(kind="freeze", part="aggregator", round_number=2, wait_seconds=0.1, seconds=4.0),
    Fault(kind="freeze", part="node-1", round_number=4, wait_seconds=0.05, seconds=4.0),
    Fault(kind="duplicates", part="aggregator"),
    Fault(kind="duplicates", part="node-0"),
]
BROKERS_DISK = [
    Fault(kind="broker wiped", round_number=2, wait_seconds=0.1, seconds=0.3),
    Fault(kind="broker truncated", round_number=4, wait_seconds=0.1, seconds=0.3),
]


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(EVERYTHING_DIES_ONCE, id="everything dies once"),
        pytest.param(ALL_LINKS_FAIL, id="all links fail"),
        pytest.param(FROZEN_AND_REPEATED, id="frozen and repeated"),
        pytest.param(BROKERS_DISK, id="the broker's disk"),
    ],
)
def test_planned_schedule_ends_with_the_undisturbed_digest(tmp_path: Path, expected_digest: str, faults: list[Fault]) -> None:
    run_schedule(0, faults, tmp_path / "run", expected_digest=expected_digest)


def test_with_a_quorum_every_update_is_accounted_for_exactly_once(tmp_path: Path) -> None:
    require("mosquitto")
    faults = [
        Fault(kind="kill now", part="node-1", round_number=2, wait_seconds=0.02),
        Fault(kind="freeze", part="node-2", round_number=3, wait_seconds=0.02, seconds=4.0),
        Fault(kind="kill", part="aggregator", step="after:ack:8"),
    ]
    run_schedule(1, faults, tmp_path / "run", expected_digest=None)


def test_schedules_repeat_and_reach_every_kind_of_fault() -> None:
    assert draw_schedule(5, num_rounds=NUM_ROUNDS) == draw_schedule(5, num_rounds=NUM_ROUNDS)
    drawn = [draw_schedule(seed, num_rounds=NUM_ROUNDS) for seed in range(100)]
    assert {1, 2, 3, 4, 5} == {len(faults) for faults in drawn}
    assert len({fault.kind for faults in drawn for fault in faults}) == 14
