"""Samples per second of local training: FedMQ's loop against the naive DataLoader + PIL loop, on one core.

Target: at least 2x at batch 16 (SimpleCNN, 28 x 28 x 3). The loops take turns, so that both meet the same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.naive_training import simple_cnn, train_naively
from federation import models
from federation.data import load_dataset
from federation.images import ImageSet
from federation.settings import DataSettings, ModelSettings, TrainingSettings
from federation.training import TrainingTask, train

TARGET_RATIO = 2.0
DATASET = "bloodmnist_half"
NUM_SYNTHETIC = 5000
SYNTHETIC_CLASSES = 8


def load_images(data_dir: str | None) -> tuple[str, ImageSet, int]:
    """Return where the images are from, the images, and their number of classes."""
    if data_dir and (Path(data_dir) / f"{DATASET}.npz").is_file():
        dataset = load_dataset(DataSettings(name=DATASET), data_dir=Path(data_dir), cache_dir=Path(data_dir), download=False)
        return DATASET, dataset.train, dataset.num_classes
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (NUM_SYNTHETIC, 3, 28, 28), dtype=np.uint8)
    labels = generator.integers(0, SYNTHETIC_CLASSES, NUM_SYNTHETIC).astype(np.int64)
    return f"synthetic noise (no {DATASET}.npz in FEDMQ_DATA_DIR)", ImageSet(images=images, labels=labels), SYNTHETIC_CLASSES


def time_naive(images: ImageSet, num_classes: int, batch_size: int) -> float:
    """Return the naive loop's samples per second over one epoch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = time.perf_counter()
    network = simple_cnn(images.image_shape[0], images.image_shape[1], num_classes)
    order = np.random.default_rng(0).permutation(len(images))
    train_naively(network, images.images, images.labels, num_classes=num_classes, orders=[order], batch_size=batch_size)
    return len(images) / (time.perf_counter() - start)


def time_ours(images: ImageSet, num_classes: int, batch_size: int) -> float:
    """Return our loop's samples per second over one epoch, its set-up and read-out included."""
    model = ModelSettings(name="simple_cnn")
    global_params = models.parameters_of(models.build(model, images.image_shape, num_classes, seed=0))
    task = TrainingTask(
        global_params=global_params,
        images=images,
        num_classes=num_classes,
        model=model,
        training=TrainingSettings(local_epochs=1, batch_size=batch_size, num_threads=1, device="cpu"),
        learning_rate=0.001,
        proximal_mu=0.0,
        seed=0,
        round_number=1,
        node="benchmark",
    )
    start = time.perf_counter()
    train(task)
    return len(images) / (time.perf_counter() - start)


def main(argv: Sequence[str]) -> int:
    """Print both loops' figures; return 1 where the target is missed."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench training", description="samples per second of local training, ours against the naive loop"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--repeats", type=int, default=7, help="epochs timed of each loop")
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args(argv)
    source, images, num_classes = load_images(os.environ.get("FEDMQ_DATA_DIR"))
    naive, ours = [], []
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if cores:
        os.sched_setaffinity(0, {max(cores)})
    try:
        # The first epoch of each warms caches and is not counted.
        for repeat in range(options.repeats + 1):
            figures = time_naive(images, num_classes, options.batch_size), time_ours(images, num_classes, options.batch_size)
            if repeat:
                naive.append(figures[0])
                ours.append(figures[1])
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
    ratio = statistics.median(ours) / statistics.median(naive)
    report = {
        "benchmark": "training",
        "data": source,
        "num_samples": len(images),
        "batch_size": options.batch_size,
        "repeats": options.repeats,
        "torch": torch.__version__,
        "naive_samples_per_second": round(statistics.median(naive), 1),
        "fedmq_samples_per_second": round(statistics.median(ours), 1),
        "naive_all": [round(figure, 1) for figure in naive],
        "fedmq_all": [round(figure, 1) for figure in ours],
        "ratio": round(ratio, 3),
        "target_ratio": TARGET_RATIO,
        "is_met": ratio >= TARGET_RATIO,
    }
    print(f"local training, SimpleCNN, batch {options.batch_size}, one core, {source}, median of {options.repeats} epochs")
    print(f"  naive DataLoader + PIL  {report['naive_samples_per_second']:>8} samples/s")
    print(f"  FedMQ                   {report['fedmq_samples_per_second']:>8} samples/s")
    print(f"  ratio                   {ratio:>8.2f} (target {TARGET_RATIO:g}: {'met' if report['is_met'] else 'MISSED'})")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if report["is_met"] else 1
