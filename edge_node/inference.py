"""The device's own model: each global model as ONNX, measured, and the best of its precisions kept for use."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from federation.errors import FedMQError
from federation.images import ImageSet
from federation.inference.card import ModelCard
from federation.inference.figures import EngineFigures, failure_point
from federation.inference.last_good import LastGood
from federation.inference.model_file import replace_file
from federation.inference.trial import Candidate, Trial, TrialResult
from federation.messages import MetricPoint
from federation.params import Params
from federation.settings import ModelSettings

logger = logging.getLogger("inference")

CURRENT_MODEL = "current.onnx"
"""The model in use, in the node's `models` folder."""

DEVICE_FILE = "device.json"
"""What was found out about this device once: the best batch size of each structure."""

ACCURACY_BUDGET = 0.005
"""Share of the validation images int8 may get wrong beyond float32: half a point."""

MIN_GAIN = 1.05
"""int8 must be at least 5 % faster: less is within the noise, and float32 is exact."""

BUDGET_SECONDS = 10.0
"""About how long a round's measurements may take; the next round's training waits for them."""

NUM_SUBSTITUTE_IMAGES = 256
"""Training images that are timed on where a node keeps none for validation."""


class OnnxDeployer:
    """Turns each global model into the device's own and says how it performs.

    Args:
        validation: the node's validation share; None: nothing is judged by accuracy, and float32 is used.
        calibration: the node's training images, for int8.
        class_names: in label order.
        folder: the node's `models` folder.
        num_threads: of every engine: the node's cores.
        time_ns: what time it is, in nanoseconds since 1970.
        accuracy_budget: share of the validation images int8 may get wrong beyond float32.
        budget_seconds: about how long a round's measurements may take.
        with_int8: False leaves int8 out.
    """

    def __init__(
        self,
        *,
        validation: ImageSet | None,
        calibration: ImageSet,
        class_names: tuple[str, ...],
        folder: Path,
        num_threads: int,
        time_ns: Callable[[], int],
        accuracy_budget: float = ACCURACY_BUDGET,
        budget_seconds: float = BUDGET_SECONDS,
        with_int8: bool = True,
    ) -> None:
        self._class_names = class_names
        self._folder = folder
        self._num_threads = num_threads
        self._time_ns = time_ns
        self._accuracy_budget = accuracy_budget
        self._last_good = LastGood(folder)
        images = validation if validation is not None and len(validation) > 0 else None
        self._image_shape = calibration.image_shape
        self._trial = Trial(
            images=images or _spread(calibration, NUM_SUBSTITUTE_IMAGES),
            is_scored=images is not None,
            calibration=calibration.images if with_int8 else None,
            class_names=class_names,
            num_threads=num_threads,
            budget_seconds=budget_seconds,
        )

    def deploy(self, *, run: str, round_number: int, model: ModelSettings, global_digest: str, params: Params) -> list[MetricPoint]:
        """Put the global model at the start of a round to use, and return what was measured.

        Never raises: a model that can't be deployed leaves the device's model as it was and is a point whose tag `reason` says why.
        """
        try:
            return self._deploy(run, round_number, model, global_digest, params)
        except (FedMQError, OSError) as error:
            logger.error("round=%d onnx=failed reason=%r", round_number, str(error))  # noqa: TRY400 - the sentence says it all
            return [failure_point("onnx", error, self._time_ns())]
        except Exception as error:  # a device without its own model still trains
            logger.exception("round=%d onnx=failed", round_number)
            return [failure_point("onnx", error, self._time_ns())]

    def _deploy(self, run: str, round_number: int, model: ModelSettings, global_digest: str, params: Params) -> list[MetricPoint]:
        card = ModelCard(
            run=run,
            round_number=round_number,
            class_names=self._class_names,
            image_shape=self._image_shape,
            weights_digest=global_digest,
        )
        known = self._known_batch_size(model)
        result = self._trial.run(model, params, card, batch_size=known)
        if known is None:
            self._keep_batch_size(model, result.batch_size)
        if not result.parity.holds:
            logger.error("round=%d onnx=differs_from_pytorch detail=%r", round_number, result.parity.describe())
        chosen, reason = choose_candidate(result.candidates, self._accuracy_budget)
        kept = self._last_good.judge(
            run=run,
            round_number=round_number,
            accuracy=chosen.figures.accuracy,
            num_images=int(chosen.figures.fields["num_images"]),
            has_model=(self._folder / CURRENT_MODEL).exists(),
        )
        if kept:
            logger.warning("round=%d onnx=kept reason=%r", round_number, kept)
        else:
            replace_file(self._folder / CURRENT_MODEL, chosen.serialised)
            logger.info("round=%d onnx=deployed engine=%s reason=%r %s", round_number, chosen.figures.engine, reason, _summary(result))
        self._last_good.save()
        time_ns = self._time_ns()
        points = [result.torch.to_point(time_ns, is_current=False)]
        points += [
            candidate.figures.to_point(time_ns, is_current=candidate is chosen and not kept, is_kept_out=bool(kept))
            for candidate in result.candidates
        ]
        if result.int8_error is not None:
            logger.warning("round=%d onnx-int8=failed reason=%r", round_number, str(result.int8_error))
            points.append(failure_point("onnx-int8", result.int8_error, time_ns))
        return points

    def _known_batch_size(self, model: ModelSettings) -> int | None:
        found = self._device_facts().get(self._device_key(model))
        return found if type(found) is int and found >= 1 else None

    def _keep_batch_size(self, model: ModelSettings, batch_size: int) -> None:
        facts = self._device_facts() | {self._device_key(model): batch_size}
        replace_file(self._folder / DEVICE_FILE, json.dumps(facts, indent=1, sort_keys=True).encode())

    def _device_facts(self) -> dict[str, object]:
        try:
            facts = json.loads((self._folder / DEVICE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}  # not measured yet, or damaged: measured again
        return facts if isinstance(facts, dict) else {}

    def _device_key(self, model: ModelSettings) -> str:
        shape = "x".join(str(side) for side in self._image_shape)
        return f"batch_size {model.name} {shape} threads={self._num_threads} onnxruntime={onnxruntime.__version__}"


def choose_candidate(candidates: Sequence[Candidate], accuracy_budget: float) -> tuple[Candidate, str]:
    """Return the model a device should use, and why.

    Single images decide, because a device's application waits for one at a time.

    Args:
        candidates: float32 first, then int8 or nothing.
        accuracy_budget: share of images int8 may get wrong beyond float32.
    """
    exact = candidates[0]
    if len(candidates) == 1:
        return exact, "there is no int8 model"
    small = candidates[1]
    loss = accuracy_loss(exact.figures, small.figures)
    gain = exact.figures.p50_ms / max(small.figures.p50_ms, 1e-9)
    if loss is None:
        return exact, "there are no validation images to judge int8 by"
    if loss > accuracy_budget + 1e-12:
        return exact, f"int8 loses {100 * loss:.2f} points of accuracy, the budget is {100 * accuracy_budget:.2f}"
    if gain < MIN_GAIN:
        return exact, f"int8 is {gain:.2f}x as fast here, less than {MIN_GAIN:.2f}x"
    return small, f"int8 is {gain:.2f}x as fast and loses {100 * loss:.2f} points of accuracy, the budget is {100 * accuracy_budget:.2f}"


def accuracy_loss(exact: EngineFigures, small: EngineFigures) -> float | None:
    """Return how much accuracy int8 costs, as a share; None where it was not judged."""
    return None if exact.accuracy is None or small.accuracy is None else exact.accuracy - small.accuracy


def _summary(result: TrialResult) -> str:
    onnx = result.candidates[0].figures.fields
    return (
        f"accuracy={onnx.get('accuracy', float('nan')):.4f} torch_ms={onnx['torch_ms']:.3f} onnx_ms={onnx['onnx_ms']:.3f} "
        f"speedup={onnx['speedup']:.2f} max_abs_difference={onnx['max_abs_difference']:.3g} convert_seconds={onnx['convert_seconds']:.4f}"
    )


def _spread(images: ImageSet, num_images: int) -> ImageSet:
    indices = np.unique(np.linspace(0, len(images) - 1, min(num_images, len(images))).astype(np.int64))
    return images.take(indices)
