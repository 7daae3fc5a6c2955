"""How long after a fault of real processes its alert fires, on a real broker and database.

One run of five nodes, paused so that the machine is at rest, meets one fault after the other: two nodes killed and frozen,
the database, the broker, the server's disk, the aggregator. Needs root (a disk of its own), InfluxDB and Mosquitto.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

from federation.messages import Control
from federation.settings import parse_settings
from fedmq.private_broker import AGGREGATOR, PrivateBroker
from tests.broker.client import connected
from tests.requirements import Absent, find
from tests.small_disk import make_room, small_disk
from tests.telemetry.fleet import Fleet
from tests.telemetry.grafana import rules
from tests.telemetry.influx import InfluxServer
from tests.telemetry.rules import Labels, holds, pending_seconds

RUN = "watched"
NODES = tuple(f"node-{index}" for index in range(5))

EVALUATION_SECONDS = 5.0
"""How often the rules are asked here; Grafana asks every 30 s, so that an alert may come so much later."""

SETTLE_SECONDS = 100.0
"""After the start: as long as the broker's figures must have come for a rule to miss them."""

DISK_BYTES = 16 << 20


Firing: TypeAlias = tuple[str, Labels]
"""A rule, and of what."""


class Watch:
    """Asks every rule again and again, and keeps since when its condition holds."""

    def __init__(self, server: InfluxServer) -> None:
        self._server = server
        self._rules = {rule["uid"].removeprefix("fedmq-"): rule for rule in rules()}
        self._began: dict[Firing, float] = {}

    def look(self) -> set[Firing]:
        """Ask once; return what fires."""
        now = time.time()
        true = {(uid, labels) for uid, rule in self._rules.items() for labels in self._holds(rule, now)}
        self._began = {key: self._began.get(key, now) for key in true}
        return {(uid, labels) for (uid, labels), began in self._began.items() if now - began >= pending_seconds(self._rules[uid])}

    @property
    def holding(self) -> set[Firing]:
        """What conditions held at the last look."""
        return set(self._began)

    def _holds(self, rule: dict[str, Any], now: float) -> set[Labels]:
        try:
            return holds(rule, self._server, int(now * 1000))
        except (OSError, AssertionError):
            # No answer: what the rule says of errors.
            return {()} if rule["execErrState"] == "Alerting" else set()


def main(arguments: Sequence[str]) -> int:
    """Let the faults happen; print and store when their alerts came."""
    parser = argparse.ArgumentParser(prog="scripts/bench alerts", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    try:
        influxd, mosquitto = find("database"), find("mosquitto")
    except Absent as absent:
        print(f"this needs a database and a broker: {absent}")
        return 1
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedmq-alerts-")))
        server = InfluxServer(folder / "influx", influxd)
        server.start()
        stack.callback(server.stop)
        server.create("fedmq", "fedmq_samples")
        broker = stack.enter_context(PrivateBroker(folder / "broker", nodes=NODES, program=mosquitto))
        rows = faults(folder, server, broker)
    print(f"{'fault':22} {'rule':20} {'condition':>10} {'fires':>7}   others")
    for row in rows:
        print(
            f"{row['fault']:22} {row['rule']:20} {_seconds(row['holds'])} s {_seconds(row['fires'])} s   {', '.join(row['others']) or '-'}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0


def _seconds(value: float | None) -> str:
    return f"{value:8.0f}" if value is not None else "   never"


def faults(folder: Path, server: InfluxServer, broker: PrivateBroker) -> list[dict[str, Any]]:
    """Let one fault happen after the other to a run; return when which alert came."""
    values = {
        "run": RUN,
        "num_rounds": 1000,
        "data": {"name": "digits"},
        "partition": {"num_nodes": len(NODES), "scheme": "iid"},
        "training": {"local_epochs": 1},
        "rounds": {"min_nodes": 2, "quorum": 0.4, "grace_seconds": 1, "deadline_seconds": 30},
    }
    fleet_folder = folder / "fleet"
    with (
        small_disk(fleet_folder / "out", str(DISK_BYTES)),
        Fleet(fleet_folder, broker, parse_settings(values), influx_url=server.url) as fleet,
    ):
        fleet.start_aggregator()
        fleet.start_nodes()
        summary = fleet.out_dir / "summary.json"
        fleet.wait_until(lambda: summary.exists() and len(json.loads(summary.read_text(encoding="utf-8"))["rounds"]) >= 2)
        with connected(broker, AGGREGATOR) as client:
            client.publish(f"fedmq/v2/{RUN}/control", Control(run=RUN, wanted="pause").to_payload())
        watch = Watch(server)
        quiet_until = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < quiet_until:
            fired = watch.look()
            if fired:
                print(f"before any fault: {fired}")
            time.sleep(EVALUATION_SECONDS)
        ballast = fleet.out_dir / "ballast"
        return [
            measure(watch, "node killed", "node-offline", lambda: fleet.kill("node-0"), lambda: None, 300),
            measure(watch, "node frozen", "node-offline", lambda: fleet.freeze("node-1"), lambda: None, 300),
            measure(watch, "InfluxDB stopped", "database", server.stop, server.start, 150),
            measure(watch, "Mosquitto stopped", "broker-silent", broker.kill, broker.start, 300),
            measure(
                watch,
                "server's disk 95 % full",
                "disk-server",
                lambda: ballast.write_bytes(bytes(int(0.95 * DISK_BYTES) - used_bytes(fleet.out_dir))),
                lambda: make_room(fleet.out_dir),
                150,
            ),
            measure(watch, "aggregator killed", "aggregator-silent", lambda: fleet.kill("aggregator"), lambda: None, 300),
        ]


def used_bytes(folder: Path) -> int:
    """Return what the files of a folder take."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(
    watch: Watch, fault: str, rule: str, happen: Callable[[], Any], mend: Callable[[], Any], at_most_seconds: float
) -> dict[str, Any]:
    """Let a fault happen, and mend it once its alert fires; return after how many seconds that was, and what else fired newly."""
    before = watch.look()
    began = time.monotonic()
    happen()
    held: float | None = None
    fired: float | None = None
    others: set[str] = set()
    while fired is None and time.monotonic() < began + at_most_seconds:
        firing = {uid for uid, _ in watch.look() - before}
        seconds = time.monotonic() - began
        if held is None and rule in {uid for uid, _ in watch.holding - before}:
            held = seconds
        if rule in firing:
            fired = seconds
        others |= firing - {rule}
        time.sleep(EVALUATION_SECONDS)
    mend()
    print(f"{fault}: {rule} holds after {held}, fires after {fired}, others {sorted(others)}", flush=True)
    return {"fault": fault, "rule": rule, "holds": held, "fires": fired, "others": sorted(others)}
