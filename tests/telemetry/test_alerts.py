"""The alert rules: each fault raises its own and no other, and a run that is well, waits a little or has ended raises none.

The points are those that the aggregator's own record and monitor make; the queries are asked of a real database.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aggregator.database_address import DatabaseAddress
from federation.messages import NodeStatus
from fedmq.journal_import import import_journal
from tests.requirements import require
from tests.telemetry.grafana import rules
from tests.telemetry.influx import InfluxServer
from tests.telemetry.rules import Labels, condition, fires, holds, joined
from tests.telemetry.scripted_run import SECOND, Recording, Script

pytestmark = [pytest.mark.slow, pytest.mark.database]

HEALTHY_SECONDS = 200
"""Ten rounds before anything happens."""

WATCHED_SECONDS = 480
"""How long is looked for an alert after a fault: the slowest rule waits for five minutes."""


def leave(run: Recording) -> None:
    """A node goes: its will."""
    run.silent.add("pi-0")
    run.say("nodes/pi-0/status", NodeStatus(node="pi-0", online=False, instance="i1"))


def hang(run: Recording) -> None:
    """A node stays connected and says nothing more."""
    run.silent.add("pi-0")


def ail(run: Recording) -> None:
    """A node says that it has a problem."""
    run.say("nodes/pi-0/status", NodeStatus(node="pi-0", online=True, instance="i1", problem="the disk is full"))


def wait_for_nodes(run: Recording) -> None:
    """The run waits."""
    run.state("waiting", 11, "waiting for nodes: 2 of at least 3 are fit")


def drop_messages(run: Recording) -> None:
    """The broker drops messages."""
    run.num_messages_dropped = 5


def silence_broker(run: Recording) -> None:
    """The broker says nothing of itself."""
    run.has_broker = False


def device(**figures: float) -> Callable[[Recording], None]:
    """Return a fault of one device."""

    def happen(run: Recording) -> None:
        run.devices["pi-0"] = dict(figures)

    return happen


def server(**figures: float) -> Callable[[Recording], None]:
    """Return a fault of the server."""

    def happen(run: Recording) -> None:
        run.server |= figures

    return happen


def telemetry(**figures: int) -> Callable[[Recording], None]:
    """Return a fault of the telemetry."""

    def happen(run: Recording) -> None:
        run.telemetry |= figures

    return happen


FAULTS: dict[str, tuple[str, Callable[[Recording], None], int]] = {
    "off": ("node-offline", leave, 180),
    "hangs": ("node-silent", hang, 180),
    "unfit": ("node-unfit", ail, 360),
    "waits": ("run-waits", wait_for_nodes, 360),
    "drops": ("messages-dropped", drop_messages, 60),
    "broker": ("broker-silent", silence_broker, 240),
    "node-disk": ("disk-node", device(disk_used=0.95), 60),
    "server-disk": ("disk-server", server(disk_used=0.95), 60),
    "slow": ("node-slowed", device(throttled=1), 240),
    "hot": ("node-hot", device(temperature_celsius=86.0), 240),
    "expires": ("certificate", device(certificate_days=9.0), 60),
    "backlog": ("telemetry-waits", telemetry(waiting_bytes=900_000), 270),
    "lost": ("points-lost", telemetry(dropped_points=7), 60),
}
"""Run -> the rule, what happens, and within how many seconds it fires."""

OF_A_NODE = {"node-offline", "node-silent", "node-unfit", "disk-node", "node-slowed", "node-hot", "certificate"}


class Site:
    """A database in which runs meet faults at one moment."""

    def __init__(self, folder: Path, influx: InfluxServer) -> None:
        self.server = influx
        self.fault_ms = 0
        now_ns = time.time_ns() - (WATCHED_SECONDS + HEALTHY_SECONDS + 3600) * SECOND
        for name, (_, happen, _) in FAULTS.items():
            run = Recording(Script(run=name, started_ns=now_ns, num_rounds=200, num_nodes=3), folder / name)
            run.begin()
            run.train(1, HEALTHY_SECONDS // 20)
            self.fault_ms = run.now_ns // 10**6
            happen(run)
            if name == "waits":
                run.pass_time(WATCHED_SECONDS)
            else:
                run.train(11, 10 + WATCHED_SECONDS // 20)
            self._import(run)
        self._dead_aggregator(folder, now_ns)
        self._stuck_round(folder, now_ns)
        self._worse_model(folder, now_ns)

    def _import(self, run: Recording) -> None:
        import_journal([run.folder / "metrics.jsonl"], DatabaseAddress(url=self.server.url, token="secret"))

    def _dead_aggregator(self, folder: Path, now_ns: int) -> None:
        run = Recording(Script(run="dead", started_ns=now_ns, num_rounds=200), folder / "dead")
        run.begin()
        run.train(1, HEALTHY_SECONDS // 20)
        # The broker's will says that a node is gone, too; but nobody records it.
        self._import(run)

    def _stuck_round(self, folder: Path, now_ns: int) -> None:
        run = Recording(Script(run="stuck", started_ns=now_ns, num_rounds=200, deadline_seconds=60), folder / "stuck")
        run.begin()
        run.train(1, HEALTHY_SECONDS // 20)
        run.pass_time(WATCHED_SECONDS)
        self._import(run)

    def _worse_model(self, folder: Path, now_ns: int) -> None:
        accuracies = (*(0.8,) * 12, *(0.7,) * 30)
        run = Recording(Script(run="worse", started_ns=now_ns, num_rounds=200, accuracies=accuracies), folder / "worse")
        run.begin()
        run.train(1, 34)
        self._import(run)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A database of runs with one fault each, and one without."""
    folder = tmp_path_factory.mktemp("faults")
    influx = InfluxServer(folder / "influx", require("database"))
    influx.start()
    try:
        influx.create("fedmq", "fedmq_samples")
        yield Site(folder, influx)
    finally:
        influx.stop()


@pytest.fixture(scope="module")
def fired(site: Site) -> dict[str, dict[Labels, float]]:
    """Return rule -> of what it fires -> how many seconds after the fault."""
    result = {}
    for rule in rules():
        found = fires(rule, site.server, site.fault_ms - HEALTHY_SECONDS * 1000, site.fault_ms + WATCHED_SECONDS * 1000)
        result[rule["uid"].removeprefix("fedmq-")] = {labels: (at - site.fault_ms) / 1000 for labels, at in found.items()}
    return result


def runs_of(found: dict[Labels, float]) -> dict[str, float]:
    """Return run -> seconds."""
    return {dict(labels)["run"]: seconds for labels, seconds in found.items()}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_raises_its_alert_in_time_and_no_other(fired: dict[str, dict[Labels, float]], name: str) -> None:
    uid, _, seconds = FAULTS[name]
    raised = {rule: runs_of(found)[name] for rule, found in fired.items() if name in runs_of(found)}
    assert set(raised) == {uid}
    assert 0 < raised[uid] <= seconds
    [labels] = [dict(labels) for labels in fired[uid] if dict(labels)["run"] == name]
    assert labels == ({"run": name, "node": "pi-0"} if uid in OF_A_NODE else {"run": name})


def test_a_dead_aggregator_is_named_and_its_nodes_are_not(fired: dict[str, dict[Labels, float]]) -> None:
    raised = {rule: runs_of(found)["dead"] for rule, found in fired.items() if "dead" in runs_of(found)}
    assert set(raised) == {"aggregator-silent"}
    assert 0 < raised["aggregator-silent"] <= 240


def test_a_stuck_round_is_named_after_twice_its_deadline(fired: dict[str, dict[Labels, float]]) -> None:
    raised = {rule: runs_of(found)["stuck"] for rule, found in fired.items() if "stuck" in runs_of(found)}
    assert set(raised) == {"no-round"}
    assert 60 < raised["no-round"] <= 180, "the round opened twenty seconds before"


def test_a_worse_model_is_named_at_its_next_rounds(fired: dict[str, dict[Labels, float]]) -> None:
    raised = {rule: runs_of(found)["worse"] for rule, found in fired.items() if "worse" in runs_of(found)}
    assert set(raised) == {"accuracy-fell"}
    assert 0 < raised["accuracy-fell"] <= 120


def test_a_long_run_with_pauses_restarts_and_an_end_raises_nothing(tmp_path: Path, own_influx: InfluxServer) -> None:
    """200 rounds; the aggregator restarted twice, the run paused for ten minutes; and a quarter of an hour after its end."""
    own_influx.create("fedmq", "fedmq_samples")
    script = Script(run="well", started_ns=time.time_ns() - 7000 * SECOND, num_rounds=200, sample_seconds=20)
    run = Recording(script, tmp_path / "well")
    began_ms = run.now_ns // 10**6
    run.begin()
    run.train(1, 60)
    run.restart(20)
    run.train(61, 120)
    run.state("paused", 121, "paused: over lunch")
    run.pass_time(600)
    run.state("training", 121)
    run.train(121, 150)
    run.restart(40)
    run.train(151, 200)
    run.state("finished", 200, "all rounds done")
    for node in run.nodes:
        run.say(f"nodes/{node}/status", NodeStatus(node=node, online=False, instance="i1"))
    run.silent |= set(run.nodes)
    run.now += 0.001
    run.pass_time(60)
    import_journal([run.folder / "metrics.jsonl"], DatabaseAddress(url=own_influx.url, token="secret"))
    until_ms = run.now_ns // 10**6 + 900_000
    for rule in rules():
        assert fires(rule, own_influx, began_ms - 60_000, until_ms) == {}, rule["uid"]


def test_no_rule_holds_before_the_first_run(influx: InfluxServer) -> None:
    influx.create("fedmq", "fedmq_samples")
    for rule in rules():
        assert holds(rule, influx, time.time_ns() // 10**6) == set()


def test_values_are_joined_by_their_tags() -> None:
    node: dict[Labels, float] = {
        (("node", "a"), ("run", "r")): 0.0,
        (("node", "b"), ("run", "r")): 3.0,
        (("node", "c"), ("run", "gone")): 0.0,
    }
    rows = joined({"node": node, "run": {(("run", "r"),): 2.0}})
    assert [labels for labels, values in rows if condition("$node == 0 && $run < 4", values)] == [(("node", "a"), ("run", "r"))]
    assert condition("$best - $now > 0.05 && $run < 4", {"best": 0.8, "now": 0.7, "run": 2.0})
    assert not condition("$best - $now > 0.05 && $run < 4", {"best": 0.8, "now": 0.7, "run": 4.0})
