"""ONNX Runtime against PyTorch, plain eager and channels_last, and a round's conversion against a fresh export.

Targets at batch 16 on one x86 core: at least 4x eager and 1.8x channels_last; a conversion after the first round
in under 30 ms (SimpleCNN, 3 x 28 x 28). The engines take turns, so that all meet the same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnxruntime
import torch

from federation import models
from federation.images import Images, normalise
from federation.inference.conversion import Converter
from federation.inference.engine import OnnxEngine
from federation.inference.graph import take_pixels
from federation.inference.pytorch import TorchEngine, build_network
from federation.inference.quantisation import quantise
from federation.params import Params
from federation.settings import ModelSettings

IMAGE_SHAPE = (3, 28, 28)
NUM_CLASSES = 9
BATCH_SIZES = (1, 16, 256)
TARGET_BATCH = 16
TARGET_OVER_EAGER = 4.0
TARGET_OVER_CHANNELS_LAST = 1.8
TARGET_CONVERSION_MS = 30.0

NUM_TURNS = 40
TURN_SECONDS = 0.02
"""A turn repeats its batch for so long: thousands of times the clock's grain, short enough to fall between disturbances."""

NUM_CONVERSIONS = 7

THESIS_SPEEDUPS = {"client 0, Pi 5 8 GB": 1.44, "client 1, Pi 5 4 GB": 1.36, "client 2, Pi 4B": 1.29, "server, M1 Pro": 1.68}
"""Its table 7, PyTorch over ONNX Runtime, validation set, batch and data loader as in training: quoted, not measured here."""


def params_of_seed(model: ModelSettings, seed: int) -> Params:
    """Return a freshly initialised network's parameters."""
    return models.parameters_of(models.build(model, IMAGE_SHAPE, NUM_CLASSES, seed))


Figures: TypeAlias = dict[str, dict[str, float]]
"""Numbers by batch size and name."""


def time_engines(graphs: Mapping[str, onnx.ModelProto], params: Params, model: ModelSettings, num_turns: int) -> Figures:
    """Return microseconds per image by batch size and engine; engines alone, without data handling.

    Each engine's quickest turn counts: what else the machine does only ever adds.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (max(BATCH_SIZES), *IMAGE_SHAPE), dtype=np.uint8)
    torch_engines = {
        name: TorchEngine(build_network(model, IMAGE_SHAPE, NUM_CLASSES, params), channels_last=name == "channels_last")
        for name in ("eager", "channels_last")
    }
    onnx_engines = {name: OnnxEngine(graph.SerializeToString(), num_threads=1) for name, graph in graphs.items()}
    figures: Figures = {}
    for size in BATCH_SIZES:
        runs = {name: prepared_run(engine.prepare, engine.run, pixels[:size]) for name, engine in torch_engines.items()}
        runs |= {name: prepared_run(normalise, engine.run, pixels[:size]) for name, engine in onnx_engines.items()}
        turns: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(-1, num_turns):
            for name, run in runs.items():
                seconds = time_turn(run)
                if turn >= 0:  # the first turn warms up
                    turns[name].append(1e6 * seconds / size)
        figures[str(size)] = {name: min(found) for name, found in turns.items()}
    return figures


def prepared_run(prepare: Callable[[Images], Any], run: Callable[[Any], Any], images: Images) -> Callable[[], object]:
    """Return a call that runs an engine on images prepared beforehand."""
    batch = prepare(images)
    return lambda: run(batch)


def time_turn(run: Callable[[], object]) -> float:
    """Return the seconds of one call, the mean over a turn."""
    num_calls, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < TURN_SECONDS:
        run()
        num_calls += 1
    return passed / num_calls


def time_conversions(model: ModelSettings, num_repeats: int) -> dict[str, float]:
    """Return milliseconds of a fresh conversion and of a later round's, medians; both up to an engine ready to run."""
    fresh, filled = [], []
    for repeat in range(num_repeats):
        converter = Converter()
        fresh.append(time_conversion(converter, model, 2 * repeat))
        filled.append(time_conversion(converter, model, 2 * repeat + 1))
    return {
        "fresh_ms": statistics.median(fresh),
        "filled_ms": statistics.median(filled),
        "fresh_over_filled": statistics.median(fresh) / statistics.median(filled),
    }


def time_conversion(converter: Converter, model: ModelSettings, seed: int) -> float:
    """Return milliseconds from a global model's tensors to an engine that takes raw pixels."""
    params = params_of_seed(model, seed)
    start = time.perf_counter()
    OnnxEngine(take_pixels(converter.convert(model, IMAGE_SHAPE, NUM_CLASSES, params).model).SerializeToString(), num_threads=1)
    return 1e3 * (time.perf_counter() - start)


def ratios_of(figures: Figures) -> Figures:
    """Return PyTorch's time over ONNX Runtime's, and float32's over int8's, by batch size."""
    return {
        size: {
            "over_eager": row["eager"] / row["onnx"],
            "over_channels_last": row["channels_last"] / row["onnx"],
            "int8_over_float32": row["onnx"] / row["onnx-int8"],
        }
        for size, row in figures.items()
    }


def targets_of(figures: Figures, conversion: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Return each target, what was measured, and whether it was met."""
    ratios = ratios_of(figures)[str(TARGET_BATCH)]
    targets = {
        name: {"value": ratios[name], "target": f">= {least}", "met": ratios[name] >= least}
        for name, least in (("over_eager", TARGET_OVER_EAGER), ("over_channels_last", TARGET_OVER_CHANNELS_LAST))
    }
    milliseconds = conversion["filled_ms"]
    met = milliseconds < TARGET_CONVERSION_MS
    return {**targets, "conversion_ms": {"value": milliseconds, "target": f"< {TARGET_CONVERSION_MS:g}", "met": met}}


def show(report: Mapping[str, Any]) -> None:
    """Print the figures as tables."""
    print(f"{report['model']}, {'x'.join(map(str, IMAGE_SHAPE))}, one thread, {report['machine']}; torch {report['torch']}, "
          f"onnxruntime {report['onnxruntime']}\n")  # fmt: skip
    names = list(report["microseconds_per_image"][str(TARGET_BATCH)])
    if report["load_average"] > report["num_cores"]:
        load = f"load {report['load_average']:.1f} on {report['num_cores']} cores"
        print(f"the machine is busy ({load}): ratios vary by a fifth, measure again\n")
    print("microseconds per image, the engine alone, the quickest turn")
    print(f"{'batch':>6}" + "".join(f"{name:>16}" for name in names) + f"{'eager/onnx':>14}{'chan.last/onnx':>16}{'onnx/int8':>12}")
    for size, row in report["microseconds_per_image"].items():
        ratios = report["ratios"][size]
        cells = "".join(f"{row[name]:>16.1f}" for name in names)
        print(f"{size:>6}{cells}{ratios['over_eager']:>13.2f}x{ratios['over_channels_last']:>15.2f}x{ratios['int8_over_float32']:>11.2f}x")
    print("\nthe thesis's table 7, for comparison: " + ", ".join(f"{name} {value:.2f}x" for name, value in THESIS_SPEEDUPS.items()))
    conversion = report["conversion"]
    print(
        f"\na global model to a ready engine: {conversion['filled_ms']:.1f} ms in later rounds, {conversion['fresh_ms']:.1f} ms by fresh "
        f"export + simplify ({conversion['fresh_over_filled']:.0f}x)"
    )
    for name, target in report["targets"].items():
        print(f"{'met   ' if target['met'] else 'MISSED'} {name}: {target['value']:.2f}, target {target['target']}")


def main(argv: Sequence[str]) -> int:
    """Print the figures; return 1 where a target is missed."""
    parser = argparse.ArgumentParser(prog="scripts/bench inference", description="ONNX Runtime against PyTorch, and conversion")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--turns", type=int, default=NUM_TURNS, help="timed turns of each engine and batch size")
    parser.add_argument("--model", default="simple_cnn", choices=models.MODEL_NAMES, help="targets hold for simple_cnn alone")
    options = parser.parse_args(argv)
    model = ModelSettings.model_validate({"name": options.model})
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    torch.set_num_threads(1)
    if cores:
        os.sched_setaffinity(0, {max(cores)})
    try:
        params = params_of_seed(model, 1)
        graph = Converter().convert(model, IMAGE_SHAPE, NUM_CLASSES, params).model
        calibration = np.random.default_rng(1).integers(0, 256, (128, *IMAGE_SHAPE), dtype=np.uint8)
        figures = time_engines({"onnx": graph, "onnx-int8": quantise(graph, calibration)}, params, model, options.turns)
        conversion = time_conversions(model, NUM_CONVERSIONS)
    finally:
        if cores:
            os.sched_setaffinity(0, cores)
    report = {
        "benchmark": "inference",
        "model": options.model,
        "machine": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
        "turns": options.turns,
        "load_average": round(os.getloadavg()[0], 2),
        "num_cores": os.cpu_count() or 1,
        "microseconds_per_image": figures,
        "ratios": ratios_of(figures),
        "thesis_speedups": THESIS_SPEEDUPS,
        "conversion": conversion,
        "targets": targets_of(figures, conversion) if options.model == "simple_cnn" else {},
    }
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if all(target["met"] for target in report["targets"].values()) else 1
