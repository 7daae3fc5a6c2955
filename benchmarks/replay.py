"""What "nothing is lost" costs: `scripts/bench replay`.

1. Round time with archive, retention and signatures on and off, in turns: how much longer a round takes.
2. Replay of a run from the broker and from the archive, signatures checked: how long, how fast.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aggregator.archive import Archive
from aggregator.broker_rounds import BrokerRounds
from aggregator.replay import Replay, RoundSource
from benchmarks.round_process import MODELS
from benchmarks.rounds import WARM_UP_ROUNDS, run_rounds
from federation.broker_address import BrokerAddress
from federation.signing import TrustedKeys
from fedmq.certificates import create_signing_pair
from fedmq.private_broker import AGGREGATOR, OBSERVER, PrivateBroker
from fedmq.retained_reader import RetainedReader

RUN = "bench"
TARGET_MS = 10.0
"""More a round, with everything on."""


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; return 0."""
    parser = argparse.ArgumentParser(prog="scripts/bench replay", description=__doc__)
    parser.add_argument("--model", choices=[*MODELS], default="simple_cnn")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="runs with everything on, and as many with everything off")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    periods: dict[str, list[float]] = {"on": [], "off": []}
    replays: dict[str, float] = {}
    for _ in range(options.repeats):
        for side in periods:
            replays |= _run(side, options, periods[side])
    medians = {side: statistics.median(values) for side, values in periods.items()}
    megabytes = options.rounds * (options.nodes + 1) * MODELS[options.model] / 1e6
    figures: dict[str, Any] = {
        "model": options.model,
        "num_nodes": options.nodes,
        "num_rounds": options.rounds,
        "round_ms_on": medians["on"],
        "round_ms_off": medians["off"],
        "more_ms": medians["on"] - medians["off"],
        "replayed_megabytes": megabytes,
        **{f"replay_{origin}_seconds": seconds for origin, seconds in replays.items()},
    }
    print(
        f"{options.model}, {options.nodes} nodes, {options.rounds} rounds, {options.repeats} runs each: "
        f"median {medians['on']:.1f} ms a round with "
        f"archive, retention and signatures, {medians['off']:.1f} ms without: {figures['more_ms']:+.1f} ms (target under {TARGET_MS:.0f})"
    )
    for origin, seconds in replays.items():
        print(f"replay of {options.rounds} rounds from the {origin}: {seconds:.2f} s, {megabytes / seconds:.0f} MB/s")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


def _run(side: str, options: argparse.Namespace, periods: list[float]) -> dict[str, float]:
    """Run one run and append its rounds' periods in ms; with everything on, return the seconds that replays took."""
    nodes = [f"node-{index}" for index in range(options.nodes)]
    num_rounds = options.rounds + WARM_UP_ROUNDS
    with tempfile.TemporaryDirectory(prefix="fedmq-bench-") as scratch:
        folder = Path(scratch)
        _make_keys(folder, [AGGREGATOR, *nodes])
        with PrivateBroker(folder / "broker", nodes=nodes) as broker:
            arguments = ["--keys", str(folder)] if side == "on" else ["--bare"]
            run_rounds(broker, nodes, options.model, folder, num_rounds=num_rounds, options=arguments)
            lines = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
            stamps = [line["time_ns"] for line in lines if line["measurement"] == "round"]
            periods += [(later - earlier) / 1e6 for earlier, later in itertools.pairwise(stamps)][WARM_UP_ROUNDS - 1 :]
            return _replay(broker, folder, options.rounds) if side == "on" else {}


def _replay(broker: PrivateBroker, folder: Path, num_rounds: int) -> dict[str, float]:
    address = BrokerAddress(host=broker.host, port=broker.port, username=OBSERVER, password=broker.passwords[OBSERVER])
    with RetainedReader(address) as reader:
        sources: dict[str, RoundSource] = {"broker": BrokerRounds(RUN, reader.read), "archive": Archive(folder / "out" / "rounds")}
        seconds = {}
        for origin, source in sources.items():
            started = time.monotonic()
            num_agreeing = sum(1 for _ in Replay(RUN, source, TrustedKeys(folder / "trusted")).verify(range(1, num_rounds + 1)))
            seconds[origin] = time.monotonic() - started
            assert num_agreeing == num_rounds
    return seconds


def _make_keys(folder: Path, names: Sequence[str]) -> None:
    (folder / "trusted").mkdir()
    for name in names:
        pair = create_signing_pair()
        (folder / f"{name}.key").write_bytes(pair.private)
        (folder / "trusted" / f"{name}.pub").write_bytes(pair.public)
