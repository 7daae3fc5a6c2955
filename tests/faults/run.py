"""The long fault test: many seeded schedules, each against a federation of its own. `scripts/faults` starts it.

Every schedule must end with the digest of the run in which nothing failed, and every round of it must replay, from
the broker and from the archive, and be in the database once. With --quorum two of three updates make a round: then every
run must end, with every update accounted for exactly once. SIGTERM ends every process within five seconds in both.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from federation.errors import FedMQError
from federation.messages import RoundResult
from tests.faults.federation import NODES
from tests.faults.schedule import Fault, Player, draw_schedule
from tests.faults.shipped import ShippedFederation
from tests.faults.starter import ColdStarter, Starter, WarmStarter
from tests.requirements import Absent, find
from tests.telemetry.influx import InfluxServer

NUM_ROUNDS = 4
TIMEOUT_SECONDS = 240.0
QUORUM_ROUNDS: dict[str, object] = {"quorum": 0.6, "grace_seconds": 1.0, "deadline_seconds": 20.0}
"""Two of three updates make a round, the third has a second more; a deadline that a schedule can reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What the schedules of one call share."""

    starter: Starter
    influx: InfluxServer | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What one schedule came to."""

    digest: str
    stop_seconds: list[float]
    num_starts: int
    power_cuts: list[str]


def play(
    shared: Bench, seed: int, faults: list[Fault], folder: Path, *, expected_digest: str | None, rounds: dict[str, object] | None = None
) -> Played:
    """Run one schedule.

    Args:
        shared: what schedules share.
        seed: of the links' jitter and of what power cuts leave.
        faults: what goes wrong.
        folder: empty; its parents' names and its own make the name of the database.
        expected_digest: of the run in which nothing fails; None asks for none.
        rounds: round settings.

    Raises:
        AssertionError: the run did not end as it must; the text holds the logs' ends.
    """
    bucket = f"{folder.parent.name}-{folder.name}".replace("_", "-")
    with ShippedFederation(
        folder, starter=shared.starter, influx=shared.influx, bucket=bucket, num_rounds=NUM_ROUNDS, seed=seed, rounds=rounds
    ) as federation:
        player = Player(federation, faults)
        player.play(TIMEOUT_SECONDS)
        federation.stop_nodes()
        federation.check_logs()
        assert not federation.problems, federation.describe(25)
        if expected_digest is not None:
            assert federation.global_digest == expected_digest, f"the digest differs\n{federation.describe(40)}"
        try:
            archived = federation.replay("archive")
            if player.is_broker_mended:
                assert federation.replay("broker") == archived
        except FedMQError as error:
            raise AssertionError(f"replay: {error}\n{federation.describe(40)}") from None
        check_accounts(archived, federation.summary)
        if shared.influx is not None:
            points = {name: federation.count_points(name) for name in ("round", "outcome")}
            expected = {"round": len(archived), "outcome": sum(len(result.outcomes) for result in archived)}
            assert points == expected, f"in the database: {points}, by the archive: {expected}\n{federation.describe(40)}"
        return Played(
            digest=federation.global_digest,
            stop_seconds=[seconds for part in federation.parts.values() for seconds in part.stop_seconds],
            num_starts=sum(part.num_starts for part in federation.parts.values()),
            power_cuts=federation.power_cuts,
        )


@contextmanager
def bench(folder: Path, *, is_cold: bool = False) -> Iterator[Bench]:
    """Yield what schedules share: a starter, and a database where the programs for one are installed."""
    with ExitStack() as stack:
        influx = None
        try:
            influx = InfluxServer(folder / "influx", find("database"))
        except Absent:
            pass
        else:
            influx.start()
            stack.callback(influx.stop)
        yield Bench(starter=ColdStarter() if is_cold else stack.enter_context(WarmStarter()), influx=influx)


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
    parser = argparse.ArgumentParser(prog="scripts/faults", description="Runs seeded schedules of faults against the shipped processes.")
    parser.add_argument("--seeds", type=int, default=20, help="how many schedules")
    parser.add_argument("--first-seed", "--first", type=int, default=0, help="the first one's seed")
    parser.add_argument("--quorum", action="store_true", help="two of three updates make a round")
    parser.add_argument("--cold", action="store_true", help="start every process with `python -m`, imports and all: ten times the CPU")
    parser.add_argument("--json", type=Path, help="write the outcome into this file, too")
    parser.add_argument("--keep", type=Path, help="keep the folders of failed schedules here")
    options = parser.parse_args()
    failed: dict[int, str] = {}
    kinds: Counter[str] = Counter()
    seconds: list[float] = []
    stops: list[float] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedmq-faults-")))
        shared = stack.enter_context(bench(scratch, is_cold=options.cold))
        undisturbed = play(shared, 0, [], scratch / "undisturbed", expected_digest=None)
        stops += undisturbed.stop_seconds
        rounds, expected = (QUORUM_ROUNDS, None) if options.quorum else (None, undisturbed.digest)
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            faults = draw_schedule(seed, num_rounds=NUM_ROUNDS)
            kinds.update(fault.kind for fault in faults)
            folder = scratch / str(seed)
            started = time.monotonic()
            try:
                played = play(shared, seed, faults, folder, expected_digest=expected, rounds=rounds)
                stops += played.stop_seconds
            except AssertionError as error:
                failed[seed] = str(error)
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    folder.rename(options.keep / str(seed))
            seconds.append(time.monotonic() - started)
            mode = " --quorum" if options.quorum else ""
            verdict = f"FAILED (repeat with --first-seed {seed} --seeds 1{mode})" if seed in failed else "ok"
            sys.stdout.write(f"seed {seed}: {verdict}, {seconds[-1]:.1f} s: {'; '.join(map(str, faults))}\n")
            if seed in failed:
                sys.stdout.write(failed[seed] + "\n")
            sys.stdout.flush()
    outcome = {
        "schedules": len(seconds),
        "failed": sorted(failed),
        "seconds": round(sum(seconds), 1),
        "faults": dict(kinds),
        "terminations": len(stops),
        "slowest_stop_seconds": round(max(stops, default=0.0), 2),
    }
    if options.json:
        options.json.write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{len(seconds) - len(failed)} of {len(seconds)} schedules ended as they must; {json.dumps(outcome)}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
