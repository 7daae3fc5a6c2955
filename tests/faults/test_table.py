"""Rows of docs/failures.md against real processes: what each side says when it happens."""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path

import pytest

from tests.faults.federation import AGGREGATOR, NODES, RUN, Federation
from tests.faults.proxy import wait_until
from tests.requirements import require
from tests.small_disk import remount, small_disk

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow]

logger = logging.getLogger("faults")

WAIT_SECONDS = 90.0
YEAR_SECONDS = 365 * 86_400.0
SIDE_OF_394_KB = 313
"""Of the weight matrix of a model as large as SimpleCNN."""

UNCUT_SURPLUS = 0.009
"""Share of bytes that are no model on that link without cuts, measured: headers, manifests, plans, keep-alives."""

TWO_OF_THREE: dict[str, object] = {"min_nodes": 2, "quorum": 0.6, "grace_seconds": 0.5}


@pytest.fixture(autouse=True)
def _mosquitto() -> None:
    require("mosquitto")


def wait_for_round(federation: Federation, round_number: int) -> None:
    def is_there() -> bool:
        federation.look_after()
        return federation.round_number >= round_number

    wait_until(is_there, timeout_seconds=WAIT_SECONDS, what=f"round {round_number}")


def wait_for_line(federation: Federation, name: str, text: str, count: int) -> None:
    wait_until(lambda: federation.log(name).count(text) >= count, timeout_seconds=WAIT_SECONDS, what=f"{text!r} in {name}'s log")


def test_late_node_takes_part_from_the_next_round(tmp_path: Path) -> None:
    with Federation(tmp_path, num_rounds=4, train_seconds=0.3, rounds={"min_nodes": 2}) as federation:
        federation.start([AGGREGATOR, "node-0", "node-1"])
        wait_for_round(federation, 2)
        federation.start(["node-2"])
        federation.wait(WAIT_SECONDS)
        cohorts = [[outcome.node for outcome in result.outcomes] for result in federation.replay("broker")]
    assert cohorts[0] == ["node-0", "node-1"]
    assert cohorts[-1] == list(NODES)


def test_flapping_node_costs_nothing_but_time(tmp_path: Path) -> None:
    """Ten reconnections in one round."""
    with Federation(tmp_path, num_rounds=2, train_seconds=6.0) as federation:
        federation.start()
        wait_for_round(federation, 1)
        for count in range(1, 11):
            federation.proxies["node-1"].cut()
            wait_for_line(federation, "node-1", "event=connected", count + 1)
        federation.wait(WAIT_SECONDS)
        assert [result.accepted for result in federation.replay("broker")] == [3, 3]


def test_two_processes_with_one_identity_are_told(tmp_path: Path) -> None:
    with Federation(tmp_path, num_rounds=3, train_seconds=1.0) as federation:
        federation.start()
        wait_for_round(federation, 1)
        first = federation.parts["node-1"].process
        assert first is not None
        federation.start_part(federation.parts["node-1"])
        second = federation.parts["node-1"].process
        assert second is not None
        wait_until(lambda: {first.poll(), second.poll()} != {None}, timeout_seconds=WAIT_SECONDS, what="one of the two to end")
        # Which of the two finds its session gone depends on who comes back first.
        assert {first.poll(), second.poll()} == {1, None}
        federation.wait(WAIT_SECONDS)
        assert "another client connected to the broker with this identity" in federation.log("node-1")
        assert "node=node-1 another process has this identity" in federation.log(AGGREGATOR)
        assert [result.accepted for result in federation.replay("broker")] == [3, 3, 3]


def test_zombie_aggregator_stops_itself_and_its_successor_leads_on(tmp_path: Path) -> None:
    with Federation(tmp_path, num_rounds=5, train_seconds=0.4) as federation:
        federation.start()
        wait_for_round(federation, 2)
        zombie = federation.parts[AGGREGATOR].process
        assert zombie is not None
        zombie.send_signal(signal.SIGSTOP)
        federation.start_part(federation.parts[AGGREGATOR])
        wait_for_round(federation, 4)
        zombie.send_signal(signal.SIGCONT)
        assert zombie.wait(WAIT_SECONDS) == 1
        federation.wait(WAIT_SECONDS)
        assert "another aggregator leads this run" in federation.log(AGGREGATOR)
        assert len(federation.replay("broker")) == len(federation.replay("archive")) == 5


def test_full_disk_is_said_in_the_nodes_status_and_the_run_goes_on(tmp_path: Path) -> None:
    """A tmpfs too small for a round; the other two make the quorum."""
    with small_disk(tmp_path / "node-2", "2m"), Federation(tmp_path, num_rounds=2, rounds=TWO_OF_THREE) as federation:
        federation.start()
        federation.wait(WAIT_SECONDS)
        assert "disk full" in federation.log(AGGREGATOR)
        assert [result.accepted for result in federation.replay("broker")] == [2, 2]


def test_node_whose_disk_can_not_take_the_model_says_so_and_takes_part_once_there_is_room(tmp_path: Path) -> None:
    """A tmpfs smaller than the model, made larger while the run goes on."""
    small = tmp_path / "node-2"
    with small_disk(small, "512k"), Federation(tmp_path, num_rounds=12, train_seconds=0.5, rounds=TWO_OF_THREE) as federation:
        federation.start()
        wait_for_line(federation, AGGREGATOR, "the global model can't be stored: [Errno 28]", 1)
        remount(small, "size=128m")
        federation.wait(WAIT_SECONDS)
        assert federation.parts["node-2"].num_starts == 1
        results = federation.replay("broker")
        assert (results[0].accepted, results[-1].accepted) == (2, 3)


def test_clocks_a_year_off_change_nothing(tmp_path: Path) -> None:
    """Two nodes' clocks, one ahead and one behind; then that of an aggregator which is started again in the middle of a round."""
    digests = []
    for name, offsets in (("right", {}), ("wrong", {"node-0": -YEAR_SECONDS, "node-1": YEAR_SECONDS, AGGREGATOR: 0.0})):
        with Federation(tmp_path / name, num_rounds=3, train_seconds=0.5) as federation:
            for part, seconds in offsets.items():
                federation.parts[part].options += ["--clock-offset-seconds", str(seconds)]
            federation.start()
            wait_for_round(federation, 2)
            if offsets:
                federation.parts[AGGREGATOR].options[-1] = str(YEAR_SECONDS)
                federation.signal(AGGREGATOR, signal.SIGKILL)
            federation.wait(WAIT_SECONDS)
            assert [result.accepted for result in federation.replay("broker")] == [3, 3, 3]
            digests.append(federation.global_digest)
    assert digests[0] == digests[1]


def test_slow_link_with_cuts_finishes_its_rounds_and_sends_little_twice(tmp_path: Path) -> None:
    """256 kbit/s, 300 ms round trip, a cut every 20 s: the model takes 12 s each way, so most transfers are cut once."""
    with Federation(tmp_path, num_rounds=2, rounds={"deadline_seconds": 280.0}) as federation:
        federation.parts[AGGREGATOR].options += ["--side", str(SIDE_OF_394_KB)]
        link = federation.proxies["node-0"]
        link.link.bytes_per_second, link.link.delay_seconds = 32_000.0, 0.15
        federation.parts["node-0"].options += ["--keep-alive-seconds", "30"]
        federation.start()
        cut_at, num_cuts = time.monotonic() + 20.0, 0
        while not federation.is_over:
            if time.monotonic() >= cut_at:
                link.cut()
                cut_at, num_cuts = cut_at + 20.0, num_cuts + 1
            federation.look_after()
            time.sleep(0.05)
        federation.wait(WAIT_SECONDS)
        assert num_cuts >= 2
        assert [result.accepted for result in federation.replay("broker")] == [3, 3]
        # The model and the update of each round, and the final model.
        model = federation.folder / "aggregator" / RUN / "globals" / f"{federation.global_digest}.safetensors"
        assert model.stat().st_size == pytest.approx(394_000, rel=0.01)
        payload_bytes = 5 * model.stat().st_size
        surplus = sum(link.carried_bytes.values()) / payload_bytes - 1.0
        logger.info("cuts=%d payload_bytes=%d surplus=%.4f", num_cuts, payload_bytes, surplus)
        assert surplus - UNCUT_SURPLUS < 0.1, "sent twice"
