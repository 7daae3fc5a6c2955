"""Puts an aggregator together: settings and test images in, a service ready for its transport out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aggregator.assembly import build_service_for
from aggregator.checkpoint import write_atomically
from aggregator.inference import OnnxEvaluator
from aggregator.service import AggregatorService, Job, Measure
from federation import models
from federation.clock import Clock
from federation.data import Dataset
from federation.evaluation import evaluate
from federation.messages import Evaluation, MetricPoint
from federation.params import Params
from federation.settings import RunSettings
from federation.signing import Signer, TrustedKeys
from federation.training import choose_device
from federation.transport import Transport

__all__ = ["build_evaluator", "build_service", "build_service_for"]

MEASURE_SECONDS = 1.0
"""About how long a round's ONNX measurements may take on the server; the next round goes on beside them."""


def build_service(
    *,
    settings: RunSettings,
    dataset: Dataset,
    state_dir: Path,
    out_dir: Path,
    is_resuming: bool,
    transport: Transport,
    background: Callable[[Job], None],
    clock: Clock,
    aside: Callable[[Callable[[], Any]], None] | None = None,
    measures_onnx: bool = False,
    keeps_rounds: bool = True,
    signer: Signer | None = None,
    trusted_keys: TrustedKeys | None = None,
) -> AggregatorService:
    """Return a service that trains the settings' model, seeded by the run's seed, and tests it on `dataset`.

    Raises:
        CheckpointError: there is a checkpoint although the run is not resumed, or it can't be used.
        SettingsError: the model does not fit the images, or the device is not there.
    """
    initial = models.parameters_of(models.build(settings.model, dataset.image_shape, dataset.num_classes, settings.seed))
    service = build_service_for(
        settings=settings,
        initial=initial,
        image_shape=dataset.image_shape,
        class_names=dataset.class_names,
        evaluate_global=build_evaluator(settings, dataset),
        state_dir=state_dir,
        out_dir=out_dir,
        is_resuming=is_resuming,
        transport=transport,
        background=background,
        clock=clock,
        aside=aside,
        measure=_measurer(settings, dataset, out_dir, clock) if measures_onnx else None,
        keeps_rounds=keeps_rounds,
        signer=signer,
        trusted_keys=trusted_keys,
    )
    described = {"settings": settings.model_dump(mode="json"), "image_shape": dataset.image_shape, "class_names": dataset.class_names}
    write_atomically(out_dir / "settings.json", json.dumps(described, indent=1).encode())
    return service


def build_evaluator(settings: RunSettings, dataset: Dataset) -> Callable[[Params], Evaluation]:
    """Return what evaluates a global model of the settings' network on the whole test set."""
    module = models.build(settings.model, dataset.image_shape, dataset.num_classes, seed=0)
    device = choose_device(settings.training.device)

    def evaluate_global(params: Params) -> Evaluation:
        models.load_parameters(module, params)
        return evaluate(module, dataset.test, dataset.num_classes, device=device)

    return evaluate_global


def _measurer(settings: RunSettings, dataset: Dataset, out_dir: Path, clock: Clock) -> Measure:
    """Return what measures a global model as ONNX on the whole test set."""
    evaluator = OnnxEvaluator(
        test=dataset.test,
        calibration=dataset.train,
        class_names=dataset.class_names,
        folder=out_dir,
        num_threads=settings.training.num_threads,
        time_ns=clock.time_ns,
        budget_seconds=MEASURE_SECONDS,
    )

    def measure(round_number: int, digest: str, params: Params) -> list[MetricPoint]:
        return evaluator.measure(run=settings.run, round_number=round_number, model=settings.model, global_digest=digest, params=params)

    return measure
