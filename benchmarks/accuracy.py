"""Final accuracy of FedMQ against an independent FedAvg of the same recipe, on the same partition.

Both train the thesis's recipe on the same indices per node; they share no code, and draw initial weights, batches and
dropout from generators of their own. So single seeds differ by chance, and it is the means that must agree: within 2
points. Exit status 1 where they do not.

    scripts/bench accuracy --data bloodmnist_half --rounds 20 --seeds 0 1 2 --alpha 0.5 --json accuracy.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from federation.data import Dataset, load_dataset
from federation.errors import FedMQError
from federation.partition import hold_out, split
from federation.settings import RunSettings, parse_settings
from fedmq.options import command_environment
from fedmq.simulate import run_simulation
from tests.learning.fedavg_oracle import fedavg_accuracies

LIMIT_POINTS = 2.0
"""Within two points, mean of three seeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedFigures:
    """One seed's accuracies on the global test set, after every round, in 0..1."""

    seed: int
    fedmq: list[float]
    oracle: list[float]
    fedmq_seconds: float
    oracle_seconds: float
    global_digest: str

    @property
    def difference_points(self) -> float:
        """FedMQ's final accuracy less the oracle's, in percentage points."""
        return 100 * (self.fedmq[-1] - self.oracle[-1])


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; return 1 if the mean final accuracies are more than the limit apart."""
    parser = argparse.ArgumentParser(prog="scripts/bench accuracy", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", default="bloodmnist_half", help="data set name, .npz file or folder of class sub-folders")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=5, help="local epochs per round")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--alpha", type=float, default=0.5, help="Dirichlet concentration of classes over nodes")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    values = run_values(options.data, rounds=options.rounds, epochs=options.epochs, nodes=options.nodes, alpha=options.alpha)
    try:
        figures = compare(values, seeds=options.seeds)
    except FedMQError as error:
        print(error, file=sys.stderr)
        return 1
    difference = mean_difference_points(figures)
    fedmq, oracle = (statistics.mean(finals) for finals in ([row.fedmq[-1] for row in figures], [row.oracle[-1] for row in figures]))
    print(f"mean: FedMQ {fedmq:.4f}, oracle {oracle:.4f}, difference {difference:+.2f} points")
    if options.json:
        report = {"settings": values, "mean_difference_points": difference, "seeds": [asdict(row) for row in figures]}
        options.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0 if abs(difference) <= LIMIT_POINTS else 1


def run_values(data: str, *, rounds: int, epochs: int, nodes: int, alpha: float) -> dict[str, Any]:
    """Return a run file's values: the thesis's recipe, every node in every round."""
    return {
        "run": "accuracy",
        "num_rounds": rounds,
        "data": {"name": data},
        "partition": {"scheme": "dirichlet", "num_nodes": nodes, "alpha": alpha},
        "training": {"local_epochs": epochs, "device": "cpu"},
        "rounds": {"min_nodes": nodes},
    }


def compare(values: dict[str, Any], *, seeds: Sequence[int]) -> list[SeedFigures]:
    """Train both for every seed, printing a line for each; return their accuracies.

    Raises:
        FedMQError: the settings or the data can't be used.
    """
    environment = command_environment()
    figures = []
    for seed in seeds:
        settings = parse_settings({**values, "seed": seed}, source="accuracy")
        dataset = load_dataset(settings.data, data_dir=environment.data_dir, cache_dir=environment.cache_dir)
        start = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="fedmq-accuracy-") as folder:
            summary = run_simulation(
                settings, out_dir=Path(folder), data_dir=environment.data_dir, cache_dir=environment.cache_dir, is_shown=False
            )
        middle = time.monotonic()
        oracle = oracle_accuracies(settings, dataset)
        row = SeedFigures(
            seed=seed,
            fedmq=[entry["accuracy"] for entry in summary["rounds"]],
            oracle=oracle,
            fedmq_seconds=middle - start,
            oracle_seconds=time.monotonic() - middle,
            global_digest=summary["global_digest"],
        )
        print(
            f"seed {seed}: FedMQ {row.fedmq[-1]:.4f} in {row.fedmq_seconds:.0f} s, oracle {row.oracle[-1]:.4f} "
            f"in {row.oracle_seconds:.0f} s, difference {row.difference_points:+.2f} points",
            flush=True,
        )
        figures.append(row)
    return figures


def oracle_accuracies(settings: RunSettings, dataset: Dataset) -> list[float]:
    """Return the oracle's test accuracy after every round, on the settings' own partition."""
    labels = dataset.train.labels
    partition = settings.partition
    parts = [hold_out(labels, part, partition.validation_share, partition.seed)[0] for part in split(labels, partition)]
    return fedavg_accuracies(
        dataset.train.images.transpose(0, 2, 3, 1),
        labels,
        dataset.test.images.transpose(0, 2, 3, 1),
        dataset.test.labels,
        parts,
        num_rounds=settings.num_rounds,
        seed=settings.seed,
        local_epochs=settings.training.local_epochs,
        learning_rate=settings.training.learning_rate,
        batch_size=settings.training.batch_size,
    )


def mean_difference_points(figures: Sequence[SeedFigures]) -> float:
    """Return the mean over seeds of FedMQ's final accuracy less the oracle's, in percentage points."""
    return statistics.mean(row.difference_points for row in figures)
