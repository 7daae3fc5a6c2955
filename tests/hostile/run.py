"""The hostile-node suite: one enrolled node does anything it likes for a whole run, a seed at a time. `scripts/hostile` starts it.

Of each seed must hold: the honest nodes' run finishes, no process of theirs having ended; its accuracy is within two points of the
run without that node; the node is named; it was sent nothing of anybody else's; `fedmq recover` and `fedmq replay` work
afterwards; broker and guard come up again.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from federation.errors import FedMQError
from tests.cli.command import Outcome, fedmq
from tests.faults.federation import AGGREGATOR, NODES, RUN
from tests.faults.shipped import GIVE_UP_SECONDS
from tests.faults.starter import ColdStarter, Starter, WarmStarter
from tests.hostile.federation import GUARD, MALLORY, NUM_ROUNDS, HostileFederation
from tests.hostile.mallory import SPIED, Mallory, draw_plan

TIMEOUT_SECONDS = 300.0
ACCURACY_POINTS = 0.02
"""What one of four nodes may cost the others."""

RESTART_SECONDS = 30.0

NAMING_LINE = re.compile(rf"level=(WARNING|ERROR) .*\b{MALLORY}\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one seed came to."""

    accuracy: float
    num_rounds: int
    """It was in the cohort of so many."""
    num_actions: int
    named_in: list[str]
    seconds: float


def clean_accuracy(starter: Starter, folder: Path) -> float:
    """Return the accuracy of the run without the hostile node."""
    with HostileFederation(folder, starter=starter) as federation:
        federation.start_all()
        _wait(federation)
        return float(federation.summary["final"]["accuracy"])


def withstand(starter: Starter, seed: int, folder: Path, *, expected_accuracy: float) -> Verdict:
    """Run one seed.

    Args:
        starter: starts the modules.
        seed: of the hostile node.
        folder: empty.
        expected_accuracy: of the run without it.

    Raises:
        AssertionError: something did not hold; the text holds what the node did and the logs' ends.
    """
    began = time.monotonic()
    with HostileFederation(folder, starter=starter) as federation:
        federation.start_all()
        # Earlier, it would take an honest node's place in the first cohort, which is no attack.
        _wait(federation, until=lambda: federation.log(AGGREGATOR).count(" fit") >= len(NODES))
        with Mallory(federation.broker.bundles[MALLORY], federation.broker.fleet_port, seed, folder / MALLORY) as mallory:
            _wait(federation)
        federation.stop_nodes()
        federation.check_logs()
        for name, part in federation.parts.items():
            if part.num_starts != 1:
                federation.problems.append(f"{name} had to be started {part.num_starts} times")
        assert not federation.problems, federation.describe(30)
        accuracy = float(federation.summary["final"]["accuracy"])
        assert accuracy >= expected_accuracy - ACCURACY_POINTS, (
            f"accuracy {accuracy:.4f}, without {MALLORY} {expected_accuracy:.4f}\n{federation.describe(40)}"
        )
        spied = sorted(topic for topic in mallory.received if any(part in topic for part in SPIED) or topic.startswith("$SYS"))
        assert not spied, f"{MALLORY} was sent {spied[:5]}"
        named_in = _named_in(federation)
        assert named_in, f"nobody named {MALLORY}\n{federation.describe(40)}"
        _check_records(federation)
        _check_restarts(federation)
        num_rounds = sum(MALLORY in {outcome.node for outcome in result.outcomes} for result in federation.replay("archive"))
        return Verdict(
            accuracy=accuracy, num_rounds=num_rounds, num_actions=mallory.num_actions, named_in=named_in, seconds=time.monotonic() - began
        )


def _wait(federation: HostileFederation, *, until: Callable[[], bool] = lambda: False) -> None:
    give_up_at = time.monotonic() + TIMEOUT_SECONDS
    while not federation.is_over and not until():
        assert time.monotonic() < give_up_at, f"not over after {TIMEOUT_SECONDS:.0f} s\n{federation.describe(30)}"
        federation.look_after()
        time.sleep(0.05)


def _named_in(federation: HostileFederation) -> list[str]:
    """Return where the hostile node is named as such: logs, or results that reject it."""
    places = [name for name in (AGGREGATOR, GUARD) if NAMING_LINE.search(federation.log(name))]
    results = federation.replay("archive")
    if any(outcome.node == MALLORY and outcome.outcome == "rejected" for result in results for outcome in result.outcomes):
        places.append("results")
    if not places:
        blamed = _command(federation, "blame", "--out", str(federation.folder / "out"), "--json")
        assert blamed.status == 0, f"fedmq blame: {blamed.stderr}"
        places += ["blame"] if blamed.json["culprit"] == MALLORY else []
    return places


def _check_records(federation: HostileFederation) -> None:
    """Raise unless the archive replays, the broker does, and a lost disk is rebuilt from it."""
    try:
        archived = federation.replay("archive")
    except FedMQError as error:
        raise AssertionError(f"replay of the archive: {error}\n{federation.describe(40)}") from None
    assert [result.round_number for result in archived] == list(range(1, NUM_ROUNDS + 1))
    rebuilt = federation.folder / "rebuilt"
    for name, arguments in {
        "recover": ["--out", str(rebuilt / "out"), "--state", str(rebuilt / "state")],
        "replay": ["--out", str(federation.folder / "out"), "--from", "archive"],
    }.items():
        outcome = _command(federation, name, *arguments)
        assert outcome.status == 0, f"fedmq {name}: status {outcome.status}\n{outcome.stdout}\n{outcome.stderr}\n{federation.describe(30)}"
    # What a node overwrites of its own old updates on the broker is found there, and named.
    outcome = _command(federation, "replay", "--out", str(rebuilt / "nothing"), "--from", "broker")
    is_told = f"updates/{MALLORY}" in outcome.stdout + outcome.stderr
    assert outcome.status == 0 or is_told, f"fedmq replay of the broker: {outcome.stdout}\n{outcome.stderr}\n{federation.describe(30)}"


def _command(federation: HostileFederation, name: str, *arguments: str) -> Outcome:
    variables = {
        "FEDMQ_BROKER_HOST": federation.broker.host,
        "FEDMQ_BROKER_PORT": str(federation.broker.port),
        "FEDMQ_BROKER_USERNAME": "observer",
        "FEDMQ_BROKER_PASSWORD_FILE": str(federation.broker.site.folder / "secrets" / "observer_password"),
        "FEDMQ_TRUSTED_KEYS": str(federation.broker.trusted_keys),
    }
    return fedmq(name, RUN, *arguments, **variables)


def _check_restarts(federation: HostileFederation) -> None:
    """Raise unless broker and guard come up again, the broker with what the node has left on it."""
    guard = federation.parts[GUARD]
    federation.broker.stop()
    federation.broker.start()
    num_before = federation.log(GUARD).count("broker=connected")
    federation.terminate(GUARD)
    give_up_at = time.monotonic() + RESTART_SECONDS
    while federation.log(GUARD).count("broker=connected") <= num_before or guard.num_starts < 2:
        assert time.monotonic() < give_up_at, f"the guard does not come back\n{federation.describe(30)}\n{federation.broker.tail()}"
        federation.look_after()
        time.sleep(0.05)
    assert guard.process is not None
    guard.is_stopped = True
    guard.process.send_signal(15)
    guard.process.wait(GIVE_UP_SECONDS)


def main() -> int:
    """Run seeds; print each that fails, and how to repeat it."""
    parser = argparse.ArgumentParser(
        prog="scripts/hostile", description="Runs one hostile node, seed after seed, against three honest ones."
    )
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--first-seed", type=int, default=0, help="the first one")
    parser.add_argument("--cold", action="store_true", help="start every process with `python -m`, imports and all")
    parser.add_argument("--json", type=Path, help="write the outcome into this file, too")
    parser.add_argument("--keep", type=Path, help="keep the folders of failed seeds here")
    options = parser.parse_args()
    failed: dict[int, str] = {}
    verdicts: list[Verdict] = []
    used: Counter[str] = Counter()
    began = time.monotonic()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedmq-hostile-")))
        starter = ColdStarter() if options.cold else stack.enter_context(WarmStarter())
        expected = clean_accuracy(starter, scratch / "clean")
        sys.stdout.write(f"without {MALLORY}: accuracy {expected:.4f}\n")
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            folder = scratch / str(seed)
            plan = draw_plan(seed)
            used.update([*plan[0], *plan[1]])
            facts = f"updates: {', '.join(plan[0])}; beside: {', '.join(plan[1])}"
            try:
                verdict = withstand(starter, seed, folder, expected_accuracy=expected)
            except AssertionError as error:
                failed[seed] = str(error)
                sys.stdout.write(f"seed {seed}: FAILED (repeat with --first-seed {seed} --seeds 1): {facts}\n{error}\n")
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    folder.rename(options.keep / str(seed))
            else:
                verdicts.append(verdict)
                sys.stdout.write(
                    f"seed {seed}: ok, {verdict.seconds:.1f} s, accuracy {verdict.accuracy:.4f}, {verdict.num_rounds} rounds, "
                    f"{verdict.num_actions} actions, "
                    f"named in {', '.join(verdict.named_in)}: {facts}\n"
                )
            sys.stdout.flush()
    outcome = {
        "seeds": options.seeds,
        "first_seed": options.first_seed,
        "failed": sorted(failed),
        "clean_accuracy": expected,
        "rounds_taken_part_in": sum(verdict.num_rounds for verdict in verdicts),
        "worst_accuracy": min((verdict.accuracy for verdict in verdicts), default=None),
        "seconds": round(time.monotonic() - began, 1),
        "attacks": dict(used.most_common()),
    }
    if options.json:
        options.json.write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{options.seeds - len(failed)} of {options.seeds} seeds withstood; {json.dumps(outcome)}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
