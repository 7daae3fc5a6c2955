"""Image files as pixels a model takes: PNG, JPEG, TIFF, BMP, DICOM and NumPy archives, converted with a notice.

Colour and size are converted as `federation.image_folder` does for training, so that a file predicts as it evaluated.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from federation.errors import DataError
from federation.inference.dicom import is_dicom, read_dicom

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")

MAX_PIXELS = 64_000_000
"""Of one file: a slide's overview fits, a decompression bomb does not."""

MAX_ARCHIVE_BYTES = 2 << 30
"""Of a NumPy archive's array, unpacked."""

ARRAY_NAMES = ("images", "pixels", "test_images", "x_test", "val_images", "train_images", "x_train")
"""Looked for in this order in an archive of several arrays."""

EIGHT_BIT_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One image as a model takes it."""

    name: str
    """The file's; with [index] for one of several in an archive."""
    pixels: NDArray[np.uint8]
    """C x H x W."""
    notices: tuple[str, ...]
    """What was converted, as phrases."""


def read_pictures(path: Path, image_shape: tuple[int, int, int]) -> list[Picture]:
    """Return the images of a file: one, or all of a NumPy archive's.

    Args:
        path: its content decides what it is, not its name.
        image_shape: channels, height, width the model takes.

    Raises:
        DataError: the file can't be read, or not be converted.
    """
    try:
        payload = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror or error}") from None
    if payload[:4] == b"PK\x03\x04":
        return _archive_pictures(payload, str(path), image_shape)
    return [decode_picture(payload, str(path), image_shape)]


def decode_picture(payload: bytes, name: str, image_shape: tuple[int, int, int], *, max_pixels: int | None = None) -> Picture:
    """Return the image of a file's bytes.

    Args:
        payload: PNG, JPEG, TIFF, BMP or DICOM, from anywhere.
        name: for the error and the result.
        image_shape: channels, height, width the model takes.
        max_pixels: of the image as it is stored; `MAX_PIXELS` by default.

    Raises:
        DataError: the bytes are no such image, too many pixels, or can't be converted.
    """
    notices: list[str] = []
    max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
    try:
        image = Image.fromarray(read_dicom(payload, max_pixels, notices)) if is_dicom(payload) else _open(payload, max_pixels, notices)
        return _convert(image, name, image_shape, notices)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except Exception as error:  # noqa: BLE001 - decoders fed with foreign bytes raise whatever they stumble over
        raise DataError(f"{name}: not a readable image ({type(error).__name__}: {str(error)[:200]})") from None


def _open(payload: bytes, max_pixels: int, notices: list[str]) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(payload), formats=FORMATS)
    except UnidentifiedImageError:
        raise DataError(f"not a {', '.join(FORMATS)} or DICOM image") from None
    if image.width * image.height > max_pixels:
        raise DataError(f"{image.width} x {image.height} pixels are more than {max_pixels:,}: crop or shrink it")
    if getattr(image, "n_frames", 1) > 1:
        notices.append(f"first of {image.n_frames} frames")  # type: ignore[attr-defined]
    if image.mode not in EIGHT_BIT_MODES:
        notices.append(f"{image.mode} values stretched to 8 bits")
        return Image.fromarray(_stretched(np.asarray(image)))
    upright = ImageOps.exif_transpose(image)
    if upright.size != image.size:
        notices.append("turned upright as its EXIF says")
    return upright


def _stretched(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return values of any range as 0 to 255, darkest to brightest."""
    floats = values.astype(np.float64)
    low, high = float(floats.min()), float(floats.max())
    if not np.isfinite([low, high]).all():
        raise DataError("it holds NaN or infinity")
    return np.rint((floats - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)


def _convert(image: Image.Image, name: str, image_shape: tuple[int, int, int], notices: list[str]) -> Picture:
    num_channels, height, width = image_shape
    if num_channels not in {1, 3}:
        raise DataError(f"the model takes {num_channels} channels: give it a NumPy archive of such arrays")
    mode = "L" if num_channels == 1 else "RGB"
    if image.mode != mode:
        notices.append(f"{image.mode} converted to {mode}")
        image = image.convert(mode)
    if image.size != (width, height):
        notices.append(f"resized from {image.width} x {image.height} to {width} x {height}")
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.uint8).reshape(height, width, num_channels).transpose(2, 0, 1)
    return Picture(name=name, pixels=np.ascontiguousarray(pixels), notices=tuple(notices))


def _archive_pictures(payload: bytes, name: str, image_shape: tuple[int, int, int]) -> list[Picture]:
    images = _read_archive(payload, name)
    if images.shape[3] == image_shape[0] and image_shape[0] not in {1, 3}:
        if images.shape[1:3] != image_shape[1:]:
            raise DataError(f"{name}: images of {images.shape[1]} x {images.shape[2]}, the model takes {image_shape[1]} x {image_shape[2]}")
        stacked = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        return [Picture(name=f"{name}[{index}]", pixels=pixels, notices=()) for index, pixels in enumerate(stacked)]
    if images.shape[3] not in {1, 3}:
        raise DataError(f"{name}: images of {images.shape[3]} channels, the model takes {image_shape[0]}")
    pictures = []
    for index, array in enumerate(images):
        image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
        try:
            pictures.append(_convert(image, f"{name}[{index}]", image_shape, []))
        except DataError as error:
            raise DataError(f"{name}[{index}]: {error}") from None
    return pictures


def _read_archive(payload: bytes, name: str) -> NDArray[np.uint8]:
    """Return an archive's images, N x H x W x C."""
    found, size = "", 0
    try:
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            sizes = {entry.filename.removesuffix(".npy"): entry.file_size for entry in archive.infolist()}
        found = next((key for key in ARRAY_NAMES if key in sizes), next(iter(sizes)) if len(sizes) == 1 else "")
        size = sizes.get(found, 0)
        images: NDArray[Any] = _array(payload, found) if found and size <= MAX_ARCHIVE_BYTES else np.empty(0)
    except Exception as error:  # noqa: BLE001 - as in decode_picture
        raise DataError(f"{name}: not a readable NumPy archive ({type(error).__name__}: {str(error)[:200]})") from None
    if not found:
        raise DataError(f"{name}: arrays {', '.join(sorted(sizes)[:10])}: name the one to use {ARRAY_NAMES[0]!r}")
    if size > MAX_ARCHIVE_BYTES:
        raise DataError(f"{name}: its array {found!r} unpacks to more than 2 GiB: split it")
    if images.dtype != np.uint8:
        raise DataError(f"{name}: array {found!r} is {images.dtype}, expected uint8 pixels from 0 to 255")
    if images.ndim == 2 or (images.ndim == 3 and images.shape[2] == 3):
        images = images[None]  # a single image
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or 0 in images.shape:
        raise DataError(f"{name}: array {found!r} has shape {images.shape}, expected N x H x W or N x H x W x C, none of them 0")
    return images


def _array(payload: bytes, key: str) -> NDArray[Any]:
    with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
        array = arrays[key]
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{key} is no array")  # noqa: TRY004 - a fault of the file, not of the caller
        return array
