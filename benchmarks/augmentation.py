"""What augmentation costs per image, by preset, beside local training itself, on one core.

Colour images of 28 x 28, in the blocks that local training hands over.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.training import time_ours
from federation.images import ImageSet
from federation.learning.augmentation import PRESETS, Augmentation

NUM_IMAGES = 880
"""About a block of batches of 16: training.BLOCK_BYTES."""

NUM_CLASSES = 8


def microseconds(name: str, pixels: torch.Tensor, repeats: int) -> float:
    """Return the median time per image that a preset adds, in microseconds."""
    augmentation = Augmentation(PRESETS[name], np.random.default_rng(0), (pixels.shape[3], pixels.shape[1], pixels.shape[2]))  # type: ignore[index]
    seconds = []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        augmentation(pixels)
        if repeat:
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) / len(pixels) * 1e6


def main(argv: Sequence[str]) -> int:
    """Print each preset's cost."""
    parser = argparse.ArgumentParser(prog="scripts/bench augmentation", description="microseconds an image that each preset adds")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (NUM_IMAGES, 28, 28, 3), dtype=np.uint8)
    labels = generator.integers(0, NUM_CLASSES, NUM_IMAGES).astype(np.int64)
    images = ImageSet(images=np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), labels=labels)
    time_ours(images, NUM_CLASSES, 16)
    training = statistics.median(1e6 / time_ours(images, NUM_CLASSES, 16) for _ in range(5))
    figures = {name: round(microseconds(name, torch.from_numpy(pixels), options.repeats), 1) for name in PRESETS}
    report = {"benchmark": "augmentation", "training_microseconds": round(training, 1), "augmentation_microseconds": figures}
    print(f"local training without augmentation {training:8.1f} us an image (SimpleCNN, batch 16)")
    for name, figure in figures.items():
        print(f"  {name:33} {figure:8.1f} us")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0
