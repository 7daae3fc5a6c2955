"""The same task in other processes, and the independent FedAvg."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.learning.digest_task import outcome_digest
from tests.learning.fedavg_oracle import dirichlet_parts, fedavg_accuracies
from tests.learning.small_tasks import learnable_images

ROOT = Path(__file__).resolve().parents[2]


def test_same_bits_in_another_process() -> None:
    """Another hash seed, and another number of threads to begin with, change nothing."""
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "2"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.learning.digest_task"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert result.stdout == outcome_digest()


def test_the_oracle_learns() -> None:
    """The independent FedAvg is worth comparing with: it learns a task that can be learnt, from skewed clients."""
    train, test = learnable_images(300), learnable_images(80, seed=1)
    parts = dirichlet_parts(train.labels, 3, 0.5, partition_seed=42)
    pixels = [images.images.transpose(0, 2, 3, 1) for images in (train, test)]
    accuracies = fedavg_accuracies(
        pixels[0], train.labels, pixels[1], test.labels, parts, num_rounds=4, seed=0, local_epochs=2, learning_rate=0.01
    )
    assert len(accuracies) == 4
    assert accuracies[-1] > 0.9
    assert len(np.unique(np.concatenate(parts))) == sum(len(part) for part in parts)
