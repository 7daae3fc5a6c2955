"""What counts as agreement, and what a point says."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from federation.errors import ExportError
from federation.inference.figures import compare, failure_point
from federation.metrics import make_point


def logits(*rows: tuple[float, ...]) -> NDArray[np.float32]:
    return np.array(rows, np.float32)


def test_rounding_is_agreement() -> None:
    parity = compare(logits((10.0, -3.0)), logits((10.0005, -3.0)))
    assert parity.holds
    assert parity.max_abs_difference == pytest.approx(0.0005, rel=0.01)
    assert parity.max_relative_difference == pytest.approx(0.00005, rel=0.01)


def test_more_than_rounding_is_not_even_when_the_class_is_the_same() -> None:
    parity = compare(logits((10.0, -3.0)), logits((10.002, -3.0)))
    assert parity.num_different == 0
    assert not parity.holds


def test_another_class_is_not_however_close() -> None:
    parity = compare(logits((1.0, 1.00001)), logits((1.00001, 1.0)))
    assert parity.num_different == 1
    assert not parity.holds


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_spoilt_model_is_compared_in_finite_numbers(value: float) -> None:
    """Equal spoils agree; a spoil on one side alone is the largest difference there is."""
    spoilt, whole = logits((value, 1.0)), logits((0.5, 1.0))
    assert compare(spoilt, spoilt).max_abs_difference == 0.0
    parity = compare(whole, spoilt)
    assert not parity.holds
    assert np.isfinite(parity.max_abs_difference)
    assert np.isfinite(parity.max_relative_difference)
    assert not compare(spoilt, whole).holds


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ExportError("no", reason="unsupported_special_i_e"), "unsupported_special_i_e"), (ValueError("surprise"), "unexpected_error")],
)
def test_a_failure_s_point_says_why_and_is_one_the_database_takes(error: Exception, reason: str) -> None:
    point = failure_point("onnx", error, time_ns=5)
    checked = make_point(point.measurement, point.tags, point.fields, point.time_ns)
    assert checked.tags == {"engine": "onnx", "reason": reason}
    assert checked.fields == {"failed": 1}
