"""Timing engines against each other: the same images and threads, warmed up, taking turns, several times over."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from federation.errors import DataError
from federation.images import Images
from federation.inference.engine import Logits, largest_batch

MAX_PASSES = 3
"""Over the whole set, each engine; the median counts."""

MAX_SINGLE_RUNS = 200
MIN_SINGLE_RUNS = 20
"""Single-image runs of each engine: 200 put two of them above the 99th percentile."""

NUM_WARM_UP_RUNS = 5

BATCH_SIZES = (1, 8, 16, 32, 64, 128, 256)
BATCH_TURNS = 5
BATCH_TURN_SECONDS = 0.02
"""A turn of one batch size lasts at least so long: above the noise of the clock and the scheduler."""

MAX_BATCH_SECONDS = 0.1
"""Larger batches of a large model gain little and hold up what else the device does."""

WORTHWHILE = 0.97
"""A smaller batch within 3 % of the fastest is taken: less memory for the same speed."""

_PROCESS_STATUS = Path("/proc/self/status")
_PROCESS_RESET = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One engine in a measurement."""

    name: str
    prepare: Callable[[Images], Any]
    """Data handling: uint8 N x C x H x W to the engine's own input."""
    run: Callable[[Any], Logits]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareFigures:
    """One engine over a whole set."""

    seconds: float
    """With data handling: the median batch's time, times the number of batches."""
    engine_seconds: float
    """Likewise, the engine alone."""
    logits: Logits


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyFigures:
    """One engine on single images, with data handling, in milliseconds."""

    p50_ms: float
    p95_ms: float
    p99_ms: float


def measure_share(
    contenders: Sequence[Contender], images: Images, *, batch_size: int, budget_seconds: float, max_passes: int = MAX_PASSES
) -> dict[str, ShareFigures]:
    """Return each engine's time over all images, the median of its passes, and its logits.

    Args:
        contenders: take turns, in another order each time.
        images: uint8 N x C x H x W.
        batch_size: of every engine.
        budget_seconds: no further pass is begun that would probably end beyond it; the first always runs.
        max_passes: of each engine.

    Raises:
        DataError: there are no images.
    """
    if len(images) == 0:
        raise DataError("no images to measure on: the set is empty")
    for contender in contenders:
        contender.run(contender.prepare(images[:batch_size]))
    start = time.perf_counter()
    passes: dict[str, list[tuple[float, float]]] = {contender.name: [] for contender in contenders}
    logits: dict[str, Logits] = {}
    for turn in range(max_passes):
        turn_start = time.perf_counter()
        for contender in _rotated(contenders, turn):
            seconds, engine_seconds, logits[contender.name] = _pass(contender, images, batch_size)
            passes[contender.name].append((seconds, engine_seconds))
        now = time.perf_counter()
        if now - start + (now - turn_start) > budget_seconds:
            break
    return {
        name: ShareFigures(
            seconds=median(seconds for seconds, _ in found), engine_seconds=median(alone for _, alone in found), logits=logits[name]
        )
        for name, found in passes.items()
    }


def measure_latency(contenders: Sequence[Contender], images: Images, *, budget_seconds: float) -> dict[str, LatencyFigures]:
    """Return each engine's time for one image, data handling included: what a device's application waits.

    Raises:
        DataError: there are no images.
    """
    if len(images) == 0:
        raise DataError("no images to measure on: the set is empty")
    samples: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    start = time.perf_counter()
    for turn in range(-NUM_WARM_UP_RUNS, MAX_SINGLE_RUNS):
        image = images[turn % len(images)][None]
        for contender in _rotated(contenders, turn):
            began = time.perf_counter()
            contender.run(contender.prepare(image))
            if turn >= 0:
                samples[contender.name].append(time.perf_counter() - began)
        if turn + 1 >= MIN_SINGLE_RUNS and time.perf_counter() - start > budget_seconds:
            break
    percentiles = {name: [float(value) * 1000 for value in np.percentile(found, (50, 95, 99))] for name, found in samples.items()}
    return {name: LatencyFigures(p50_ms=p50, p95_ms=p95, p99_ms=p99) for name, (p50, p95, p99) in percentiles.items()}


def choose_batch_size(contender: Contender, images: Images) -> int:
    """Return the batch size with the most images a second, the smallest of those as good.

    Batches that take longer than `MAX_BATCH_SECONDS` are left out, but for the smallest.
    """
    limit = min(len(images), largest_batch(images.shape[1:]))
    batches: dict[int, Any] = {}
    for size in [size for size in BATCH_SIZES if size <= limit]:
        batch = contender.prepare(images[:size])
        contender.run(batch)
        start = time.perf_counter()
        contender.run(batch)
        if batches and time.perf_counter() - start > MAX_BATCH_SECONDS:
            break
        batches[size] = batch
    best = dict.fromkeys(batches, 0.0)
    for _ in range(BATCH_TURNS):
        for size, batch in batches.items():
            num_images, start = 0, time.perf_counter()
            while time.perf_counter() - start < BATCH_TURN_SECONDS:
                contender.run(batch)
                num_images += size
            best[size] = max(best[size], num_images / (time.perf_counter() - start))
    return min(size for size in best if best[size] >= WORTHWHILE * max(best.values()))


def peak_memory_growth(action: Callable[[], object]) -> int | None:
    """Run `action` and return by how many bytes the process's resident memory rose at most; None where Linux does not tell."""
    _return_freed_memory()
    try:
        # Resets the peak to what is resident now (proc(5), clear_refs, value 5).
        _PROCESS_RESET.write_text("5", encoding="ascii")
        before = _resident("VmRSS")
    except (OSError, LookupError):
        action()
        return None
    action()
    return max(0, _resident("VmHWM") - before)


def _return_freed_memory() -> None:
    """Give the allocator's free memory back, or an engine that fills it again would seem to need none (glibc only)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident(name: str) -> int:
    for line in _PROCESS_STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def _pass(contender: Contender, images: Images, batch_size: int) -> tuple[float, float, Logits]:
    """Return the time over all images with and without data handling, each as the median batch's times their number, and the logits.

    A device trains, or is asked for predictions, meanwhile: of one batch that had to wait a moment, the sum made a speed-up of 129.
    """
    seconds, engine_seconds, outputs = [], [], []
    for first in range(0, len(images), batch_size):
        start = time.perf_counter()
        batch = contender.prepare(images[first : first + batch_size])
        began = time.perf_counter()
        outputs.append(contender.run(batch))
        end = time.perf_counter()
        seconds.append(end - start)
        engine_seconds.append(end - began)
    logits = np.concatenate(outputs)
    whole = slice(0, max(1, len(images) // batch_size))  # a last, smaller batch is no measure of the others
    num_batches = len(images) / min(batch_size, len(images))
    return median(seconds[whole]) * num_batches, median(engine_seconds[whole]) * num_batches, logits


def _rotated(contenders: Sequence[Contender], turn: int) -> list[Contender]:
    first = turn % len(contenders)
    return [*contenders[first:], *contenders[:first]]
