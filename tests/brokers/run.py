"""`scripts/brokers`: one short, disturbed run over every MQTT 5 broker that can be had here, and a table of what was seen."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from fedmq.private_broker import PrivateBroker
from tests.brokers.ejabberd import EjabberdBroker
from tests.brokers.trial import NUM_NODES, AnyBroker, try_broker, undisturbed_digest
from tests.requirements import Absent, Requirement, find

BROKERS: Sequence[Requirement] = ("mosquitto", "ejabberd")


def main(arguments: Sequence[str]) -> int:
    """Try the brokers named, or all; return 0 when each that is here serves."""
    parser = argparse.ArgumentParser(prog="scripts/brokers", description=__doc__)
    parser.add_argument("brokers", nargs="*", choices=[*BROKERS, []], help="default: all")
    wanted = parser.parse_args(arguments).brokers or BROKERS
    status = 0
    print("| broker | digest | rounds | replayed | recovered | seconds | verdict |\n|---|---|---|---|---|---|---|")  # noqa: T201
    with tempfile.TemporaryDirectory(prefix="fedmq-brokers-") as scratch:
        expected = undisturbed_digest(Path(scratch) / "simulated")
        for name in wanted:
            row = try_one(name, Path(scratch) / name, expected)
            status |= row is None
            print(row or f"| {name} | | | | | | FAILED |", flush=True)  # noqa: T201
    return status


def try_one(name: Requirement, folder: Path, expected: str) -> str | None:
    """Return a broker's row of the table; None when it does not serve."""
    try:
        program = find(name)
    except Absent as absent:
        return f"| {name} | | | | | | not tried: {absent} |"
    broker: AnyBroker
    if name == "mosquitto":
        broker = PrivateBroker(folder / "broker", nodes=[f"node-{index}" for index in range(NUM_NODES)], program=program)
    else:
        broker = EjabberdBroker(folder / "broker", program=program)
    started = time.monotonic()
    with broker:
        trial = try_broker(broker, folder / "run", expected)
    seconds = time.monotonic() - started
    verdict = "; ".join(trial.faults) or "serves"
    row = f"| {name} | {trial.digest[:12]} | {len(trial.rounds)} | {trial.replayed} | {trial.recovered} | {seconds:.0f} | {verdict} |"
    if trial.faults:
        print(row)  # noqa: T201
        return None
    return row


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
