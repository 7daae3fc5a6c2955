"""DICOM files as 8-bit pixels, where pydicom is installed."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.errors import DataError

_PREAMBLE_BYTES = 128
_MAGIC = b"DICM"


def is_dicom(payload: bytes) -> bool:
    """Return whether bytes are a DICOM file (PS3.10: a preamble of 128 bytes, then DICM)."""
    return payload[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4] == _MAGIC


def read_dicom(payload: bytes, max_pixels: int, notices: list[str]) -> NDArray[np.uint8]:
    """Return a DICOM file's first frame, uint8 H x W or H x W x 3, bright meaning more.

    Grey values go through the file's rescaling and its window (PS3.3 C.11.2.1.2, linear), or, without one, are
    stretched from darkest to brightest.

    Args:
        payload: the file.
        max_pixels: most pixels of all frames.
        notices: what was converted is appended.

    Raises:
        DataError: pydicom is missing, or the file holds no pixels, or too many, or packed in an unknown way.
    """
    try:
        # An extra that most devices do without.
        import pydicom
        from pydicom.pixels.utils import pixel_array
    except ImportError:
        raise DataError("DICOM files need pydicom: pip install pydicom") from None
    dataset = pydicom.dcmread(io.BytesIO(payload))
    if "PixelData" not in dataset:
        raise DataError("a DICOM file without pixels")
    num_frames = int(dataset.get("NumberOfFrames", 1) or 1)
    if int(dataset.Rows) * int(dataset.Columns) * num_frames > max_pixels:
        raise DataError(f"{dataset.Columns} x {dataset.Rows} pixels in {num_frames} frame(s) are more than {max_pixels:,}")
    if num_frames > 1:
        notices.append(f"first of {num_frames} frames")
    pixels = pixel_array(dataset, index=0 if num_frames > 1 else None)
    if pixels.ndim == 3:
        if pixels.dtype != np.uint8:
            raise DataError(f"colour DICOM of {pixels.dtype}: convert it to 8 bits a channel")
        colour: NDArray[np.uint8] = pixels
        return colour
    return _grey(dataset, pixels, notices)


def _grey(dataset: Any, pixels: NDArray[Any], notices: list[str]) -> NDArray[np.uint8]:
    values = pixels.astype(np.float64) * float(dataset.get("RescaleSlope", 1) or 1) + float(dataset.get("RescaleIntercept", 0) or 0)
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    is_plain = pixels.dtype == np.uint8 and centre is None
    if is_plain:
        low, high = 0.0, 255.0
    elif centre is not None and width is not None and width > 1:
        low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
        notices.append(f"window {centre:g} / {width:g}")
    else:
        low, high = float(values.min()), float(values.max())
        notices.append("stretched to 8 bits")
    scaled = np.clip((values if not is_plain else pixels) - low, 0, high - low) * (255.0 / max(high - low, 1e-12))
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        notices.append("MONOCHROME1 inverted")
        scaled = 255.0 - scaled
    return np.rint(scaled).astype(np.uint8)


def _first(value: Any) -> float | None:
    """Return a window's first value: a file may offer several."""
    if value is None or value == "":
        return None
    return float(value[0] if isinstance(value, (list, tuple)) or hasattr(value, "append") else value)
