"""What one engine's measurement says: agreement with PyTorch, and the fields of an `inference` point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from federation.errors import ExportError
from federation.inference.conversion import Conversion
from federation.inference.engine import Logits
from federation.inference.measurement import LatencyFigures, ShareFigures
from federation.messages import Evaluation, MetricPoint

MAX_RELATIVE_DIFFERENCE = 1e-4
"""Largest difference of two float32 engines' logits, relative to the largest logit, that rounding explains."""

UNKNOWN_REASON = "unexpected_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """How far an engine's logits are from PyTorch's."""

    max_abs_difference: float
    max_relative_difference: float
    """Of the largest logit."""
    num_different: int
    """Images of which another class is predicted."""

    @property
    def holds(self) -> bool:
        """Whether rounding explains it and every prediction is the same."""
        return self.num_different == 0 and self.max_relative_difference <= MAX_RELATIVE_DIFFERENCE

    def describe(self) -> str:
        """Return one line for the log."""
        absolute, relative = self.max_abs_difference, self.max_relative_difference
        return f"{self.num_different} other predictions, logits differ by {absolute:.3g}, relative {relative:.3g}"


def compare(reference: Logits, logits: Logits) -> Parity:
    """Return how far `logits` are from `reference`, both N x num_classes.

    Where both are NaN or the same infinity they agree; where one alone is, they differ by the largest float32.
    """
    largest = float(np.finfo(np.float32).max)
    with np.errstate(invalid="ignore", over="ignore"):
        differences = np.abs(reference.astype(np.float64) - logits)
    same = (reference == logits) | (np.isnan(reference) & np.isnan(logits))
    differences = np.where(same, 0.0, np.nan_to_num(differences, nan=largest, posinf=largest))
    finite = np.abs(reference[np.isfinite(reference)])
    scale = max(float(finite.max()) if finite.size else 0.0, float(np.finfo(np.float32).tiny))
    worst = float(differences.max())
    return Parity(
        max_abs_difference=worst,
        max_relative_difference=min(worst / scale, largest),
        num_different=int((reference.argmax(axis=1) != logits.argmax(axis=1)).sum()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFigures:
    """One engine's measurement; `fields` are those of docs/metrics.md."""

    engine: str
    p50_ms: float
    accuracy: float | None
    """On the images measured on; None where they are not for judging by."""
    fields: Mapping[str, float | int]

    def to_point(self, time_ns: int, *, is_current: bool, is_kept_out: bool = False) -> MetricPoint:
        """Return the metric point.

        Args:
            time_ns: when it was measured, in nanoseconds since 1970.
            is_current: the device uses this engine's model.
            is_kept_out: it does not, for an older round's model is far better on the device's own images.
        """
        fields = {**self.fields, "is_current": int(is_current), **({"is_kept_out": 1} if is_kept_out else {})}
        return MetricPoint(measurement="inference", time_ns=time_ns, tags={"engine": self.engine}, fields=fields)


def engine_fields(
    *,
    share: ShareFigures,
    engine_seconds: float,
    latency: LatencyFigures,
    torch_seconds: float,
    evaluation: Evaluation | None,
    model_bytes: int,
    peak_memory_bytes: int | None,
    batch_size: int,
    num_threads: int,
) -> dict[str, float | int]:
    """Return the fields that every engine's point has.

    Args:
        share: over the whole set, with data handling.
        engine_seconds: over the whole set, the engine alone.
        latency: on single images.
        torch_seconds: PyTorch's, of its faster memory format, as `share.seconds`.
        evaluation: None: without accuracy and F1.
        model_bytes: the weights or file this engine reads.
        peak_memory_bytes: growth of the process; None where the system does not tell.
        batch_size: over the whole set.
        num_threads: of the engine.
    """
    fields: dict[str, float | int] = {
        "num_images": len(share.logits),
        "batch_size": batch_size,
        "num_threads": num_threads,
        "seconds": share.seconds,
        "engine_seconds": engine_seconds,
        "images_per_second": len(share.logits) / max(engine_seconds, 1e-9),
        "p50_ms": latency.p50_ms,
        "p95_ms": latency.p95_ms,
        "p99_ms": latency.p99_ms,
        "speedup": torch_seconds / max(share.seconds, 1e-9),
        "model_bytes": model_bytes,
    }
    if peak_memory_bytes is not None:
        fields["peak_memory_bytes"] = peak_memory_bytes
    if evaluation is not None:
        fields |= {"accuracy": evaluation.accuracy, "f1_macro": evaluation.f1_macro, "f1_weighted": evaluation.f1_weighted}
        if evaluation.auc is not None:
            fields["auc"] = evaluation.auc
    return fields


def parity_fields(parity: Parity, *, is_exact: bool) -> dict[str, float | int]:
    """Return the fields that say how an ONNX engine agrees with PyTorch; `is_exact`: it should but for rounding."""
    fields: dict[str, float | int] = {
        "max_abs_difference": parity.max_abs_difference,
        "max_relative_difference": parity.max_relative_difference,
        "different_predictions": parity.num_different,
    }
    return fields | {"parity": int(parity.holds)} if is_exact else fields


def conversion_fields(conversion: Conversion) -> dict[str, float | int]:
    """Return the fields that say how the model became ONNX."""
    return {
        "convert_seconds": conversion.seconds,
        "export_seconds": conversion.export_seconds,
        "simplify_seconds": conversion.simplify_seconds,
        "is_filled": int(conversion.is_filled),
        "is_simplified": int(conversion.is_simplified),
    }


def failure_point(engine: str, error: Exception, time_ns: int) -> MetricPoint:
    """Return the point that says why there is no such engine this round, in its tag `reason`."""
    reason = error.reason if isinstance(error, ExportError) else UNKNOWN_REASON
    return MetricPoint(measurement="inference", time_ns=time_ns, tags={"engine": engine, "reason": reason}, fields={"failed": 1})
