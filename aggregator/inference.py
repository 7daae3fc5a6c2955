"""The global model as ONNX on the server: the nodes' measurements again, on the whole test set."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from federation.errors import FedMQError
from federation.images import ImageSet
from federation.inference.card import ModelCard
from federation.inference.figures import failure_point
from federation.inference.last_good import LastGood
from federation.inference.model_file import replace_file
from federation.inference.trial import Candidate, Trial
from federation.messages import MetricPoint
from federation.params import Params
from federation.settings import ModelSettings

logger = logging.getLogger("inference")

MODEL_FILE = "model.onnx"
"""The newest global model in float32, in the run's folder; int8 is each device's own choice."""

BUDGET_SECONDS = 10.0
"""About how long a round's measurements may take: the next round's evaluation waits for them."""


class OnnxEvaluator:
    """Converts each global model and measures it on the test set.

    Args:
        test: the whole test set.
        calibration: images int8 is calibrated on; None leaves int8 out.
        class_names: in label order.
        folder: the run's folder, where model.onnx is kept; None keeps none.
        num_threads: of every engine.
        time_ns: what time it is, in nanoseconds since 1970.
        budget_seconds: about how long a round's measurements may take.
    """

    def __init__(
        self,
        *,
        test: ImageSet,
        calibration: ImageSet | None,
        class_names: tuple[str, ...],
        folder: Path | None,
        num_threads: int,
        time_ns: Callable[[], int],
        budget_seconds: float = BUDGET_SECONDS,
    ) -> None:
        self._class_names = class_names
        self._image_shape = test.image_shape
        self._folder = folder
        self._last_good = LastGood(folder) if folder is not None else None
        self._time_ns = time_ns
        self._batch_sizes: dict[ModelSettings, int] = {}
        self._trial = Trial(
            images=test,
            is_scored=True,
            calibration=None if calibration is None else calibration.images,
            class_names=class_names,
            num_threads=num_threads,
            budget_seconds=budget_seconds,
        )

    def measure(self, *, run: str, round_number: int, model: ModelSettings, global_digest: str, params: Params) -> list[MetricPoint]:
        """Return what was measured of the global model at the start of a round, to be recorded without a node's name.

        Never raises: a model that can't be converted is a point whose tag `reason` says why.
        """
        try:
            card = ModelCard(
                run=run,
                round_number=round_number,
                class_names=self._class_names,
                image_shape=self._image_shape,
                weights_digest=global_digest,
            )
            result = self._trial.run(model, params, card, batch_size=self._batch_sizes.get(model))
            self._batch_sizes[model] = result.batch_size
            if not result.parity.holds:
                logger.error("round=%d onnx=differs_from_pytorch detail=%r", round_number, result.parity.describe())
            exact = result.candidates[0]
            kept = self._put_to_use(run, round_number, exact)
        except FedMQError as error:
            logger.error("round=%d onnx=failed reason=%r", round_number, str(error))  # noqa: TRY400 - the sentence says it all
            return [failure_point("onnx", error, self._time_ns())]
        except Exception as error:  # measuring must not end a run
            logger.exception("round=%d onnx=failed", round_number)
            return [failure_point("onnx", error, self._time_ns())]
        time_ns = self._time_ns()
        points = [result.torch.to_point(time_ns, is_current=False)]
        points += [
            candidate.figures.to_point(time_ns, is_current=candidate is exact and not kept, is_kept_out=bool(kept))
            for candidate in result.candidates
        ]
        if result.int8_error is not None:
            points.append(failure_point("onnx-int8", result.int8_error, time_ns))
        return points

    def _put_to_use(self, run: str, round_number: int, exact: Candidate) -> str:
        """Store a model as the run's, unless the one before is far better on the test set; return why not, or nothing."""
        if self._folder is None or self._last_good is None:
            return ""
        figures = exact.figures
        kept = self._last_good.judge(
            run=run,
            round_number=round_number,
            accuracy=figures.accuracy,
            num_images=int(figures.fields["num_images"]),
            has_model=(self._folder / MODEL_FILE).exists(),
        )
        if kept:
            logger.warning("round=%d onnx=kept reason=%r", round_number, kept)
        else:
            replace_file(self._folder / MODEL_FILE, exact.serialised)
        self._last_good.save()
        return kept
