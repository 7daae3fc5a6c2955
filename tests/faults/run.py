"""The long fault test: many seeded schedules, each against a federation of its own. `scripts/faults` starts it.

Every schedule must end with the digest of the run in which nothing failed, and every round of it must replay, from
the broker and from the archive. With --quorum two of three updates make a round: then every run must end, with
every update accounted for exactly once.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from federation.errors import FedMQError
from federation.messages import RoundResult
from tests.faults.federation import NODES, Federation
from tests.faults.schedule import Fault, Player, draw_schedule

NUM_ROUNDS = 5
TIMEOUT_SECONDS = 120.0
QUORUM_ROUNDS: dict[str, object] = {"quorum": 0.6, "grace_seconds": 1.0, "deadline_seconds": 20.0}
"""Two of three updates make a round, the third has a second more; a deadline that a schedule can reach."""


def undisturbed_digest(folder: Path) -> str:
    """Return the digest of the run in which nothing fails."""
    with Federation(folder, num_rounds=NUM_ROUNDS) as federation:
        federation.start()
        federation.wait(TIMEOUT_SECONDS)
        return federation.global_digest


def run_schedule(seed: int, faults: list[Fault], folder: Path, *, expected_digest: str | None) -> None:
    """Run one schedule.

    Args:
        seed: of the links' jitter.
        faults: what goes wrong.
        folder: empty.
        expected_digest: of the run in which nothing fails; None runs with a quorum instead.

    Raises:
        AssertionError: the run did not end as it must; the text holds the logs' ends.
    """
    rounds = None if expected_digest else QUORUM_ROUNDS
    with Federation(folder, num_rounds=NUM_ROUNDS, seed=seed, rounds=rounds) as federation:
        player = Player(federation, faults)
        player.play(TIMEOUT_SECONDS)
        if expected_digest is not None:
            assert federation.global_digest == expected_digest, f"the digest differs\n{federation.describe()}"
        try:
            archived = federation.replay("archive")
            if player.is_broker_mended:
                assert federation.replay("broker") == archived
        except FedMQError as error:
            raise AssertionError(f"replay: {error}\n{federation.describe(40)}") from None
        check_accounts(archived, federation.summary)


def check_accounts(results: list[RoundResult], summary: dict[str, Any]) -> None:
    """Raise unless every cohort member's update has exactly one outcome in every round, and the summary says the same."""
    assert [entry["round_number"] for entry in summary["rounds"]] == [result.round_number for result in results]
    for result, entry in zip(results, summary["rounds"], strict=True):
        assert [outcome.node for outcome in result.outcomes] == sorted({outcome.node for outcome in result.outcomes})
        assert {outcome.node for outcome in result.outcomes} <= {*NODES}
        counts = Counter(outcome.outcome for outcome in result.outcomes)
        assert (counts["accepted"], counts["rejected"]) == (entry["accepted"], entry["rejected"])
        assert entry["discarded"] >= counts["discarded"]


def main() -> int:
    """Run schedules; print each that fails, with the seed that repeats it."""
    parser = argparse.ArgumentParser(prog="scripts/faults", description="Runs seeded schedules of faults against real processes.")
    parser.add_argument("--seeds", type=int, default=20, help="how many schedules")
    parser.add_argument("--first", type=int, default=0, help="the first one's seed")
    parser.add_argument("--quorum", action="store_true", help="two of three updates make a round")
    parser.add_argument("--json", type=Path, help="write the outcome into this file, too")
    parser.add_argument("--keep", type=Path, help="keep the folders of failed schedules here")
    options = parser.parse_args()
    failed: dict[int, str] = {}
    kinds: Counter[str] = Counter()
    seconds = []
    with tempfile.TemporaryDirectory(prefix="fedmq-faults-") as scratch:
        expected = None if options.quorum else undisturbed_digest(Path(scratch) / "undisturbed")
        for seed in range(options.first, options.first + options.seeds):
            faults = draw_schedule(seed, num_rounds=NUM_ROUNDS)
            kinds.update(fault.kind for fault in faults)
            folder = Path(scratch) / str(seed)
            started = time.monotonic()
            try:
                run_schedule(seed, faults, folder, expected_digest=expected)
            except AssertionError as error:
                failed[seed] = str(error)
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    folder.rename(options.keep / str(seed))
            seconds.append(time.monotonic() - started)
            verdict = f"FAILED (repeat with --first {seed} --seeds 1)" if seed in failed else "ok"
            sys.stdout.write(f"seed {seed}: {verdict}, {seconds[-1]:.1f} s: {'; '.join(map(str, faults))}\n")
            if seed in failed:
                sys.stdout.write(failed[seed] + "\n")
            sys.stdout.flush()
    outcome = {"schedules": len(seconds), "failed": sorted(failed), "seconds": round(sum(seconds), 1), "faults": dict(kinds)}
    if options.json:
        options.json.write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{len(seconds) - len(failed)} of {len(seconds)} schedules ended as they must\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
