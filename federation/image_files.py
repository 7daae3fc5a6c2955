"""Reading images from single files: `.npz`, idx, and CIFAR's binary archive.

Files come from outside: nothing is unpickled or extracted, and every fault is a `DataError` that names the file.
"""

from __future__ import annotations

import gzip
import struct
import tarfile
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from federation.errors import DataError
from federation.images import Images, ImageSet, Labels
from federation.settings import MAX_CLASSES

MEDMNIST_KEYS = {
    "train": ("train_images", "train_labels"),
    "test": ("test_images", "test_labels"),
    "validation": ("val_images", "val_labels"),
}
KERAS_KEYS = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test"), "validation": ("x_val", "y_val")}

IDX_IMAGES_MAGIC = 0x0803
IDX_LABELS_MAGIC = 0x0801

CIFAR_SHAPE = (3, 32, 32)
CIFAR_FILES = {"train": tuple(f"data_batch_{index}.bin" for index in range(1, 6)), "test": ("test_batch.bin",)}
CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"

READ_FAULTS = (OSError, ValueError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error, tarfile.TarError)
"""What numpy, zipfile, gzip and tarfile raise on damaged or hostile files."""


def read_npz(path: Path) -> dict[str, ImageSet]:
    """Return the image sets `train`, `test` and perhaps `validation` of an `.npz` file.

    Args:
        path: a file with MedMNIST's keys (train_images, train_labels, test_..., val_...) or Keras' (x_train,
            y_train, ...). Images are uint8 N x H x W or N x H x W x C with 1 or 3 channels, labels integers N or N x 1.

    Raises:
        DataError: unreadable, keys missing, or arrays that are not such; names the file and the key.
    """
    try:
        # Opened here, because numpy leaves the file open when it turns out to be no archive.
        with path.open("rb") as file, _open_archive(path, file) as archive:
            return _sets_of(archive, path)
    except READ_FAULTS as error:
        raise DataError(f"{path}: not a readable .npz file ({error}): fetch or copy it again") from None


def _open_archive(path: Path, file: BinaryIO) -> np.lib.npyio.NpzFile[Any]:
    archive = np.load(file, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise DataError(f"{path}: a single array, not an .npz archive: save images and labels with numpy.savez")
    return archive


def _sets_of(archive: np.lib.npyio.NpzFile[Any], path: Path) -> dict[str, ImageSet]:
    present = set(archive.files)
    keys = next((keys for keys in (MEDMNIST_KEYS, KERAS_KEYS) if keys["train"][0] in present), None)
    if keys is None:
        raise DataError(f"{path}: neither train_images (MedMNIST) nor x_train (Keras) is in it, only {sorted(present)[:8]}")
    missing = [key for part in ("train", "test") for key in keys[part] if key not in present]
    missing += [key for key in keys["validation"] if key not in present and present & set(keys["validation"])]
    if missing:
        raise DataError(f"{path}: misses {', '.join(missing)}; it holds {sorted(present)[:8]}")
    parts = [part for part in keys if keys[part][0] in present]
    sets = {part: _checked_set(path, keys[part], *(_read_array(archive, path, key) for key in keys[part])) for part in parts}
    shapes = {part: images.image_shape for part, images in sets.items()}
    if len(set(shapes.values())) > 1:
        raise DataError(f"{path}: images differ in channels, height or width between its parts: {shapes}")
    return sets


def _read_array(archive: np.lib.npyio.NpzFile[Any], path: Path, key: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = archive[key]
    except READ_FAULTS as error:
        raise DataError(f"{path}: {key} can't be read ({error}): fetch or copy the file again") from None
    return array


def _checked_set(path: Path, keys: tuple[str, str], images: NDArray[Any], labels: NDArray[Any]) -> ImageSet:
    place_images, place_labels = (f"{path}: {key}" for key in keys)
    checked_images = _checked_images(place_images, images)
    checked_labels = _checked_labels(place_labels, labels)
    if len(checked_images) != len(checked_labels):
        raise DataError(f"{place_images} has {len(checked_images)} images, {keys[1]} {len(checked_labels)} labels: they must match")
    if len(checked_images) == 0:
        raise DataError(f"{place_images} holds no images")
    return ImageSet(images=checked_images, labels=checked_labels)


def _checked_images(place: str, images: NDArray[Any]) -> Images:
    if images.dtype != np.uint8:
        raise DataError(f"{place} holds {images.dtype}: save pixels as uint8, 0 to 255")
    is_colour = images.ndim == 4 and images.shape[3] in (1, 3)
    if not is_colour and images.ndim != 3:
        raise DataError(f"{place} has shape {images.shape}: expected N x H x W, or N x H x W x C with 1 or 3 channels (no 3D volumes)")
    if 0 in images.shape[1:]:
        raise DataError(f"{place} has shape {images.shape}: images without pixels")
    planes = images.transpose(0, 3, 1, 2) if is_colour else images[:, np.newaxis]
    return np.ascontiguousarray(planes)


def _checked_labels(place: str, labels: NDArray[Any]) -> Labels:
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise DataError(
            f"{place} has shape {labels.shape}: several labels an image (multi-label or one-hot); FedMQ trains one label per image"
        )
    if labels.ndim not in (1, 2):
        raise DataError(f"{place} has shape {labels.shape}: expected N or N x 1")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{place} holds {labels.dtype}: labels are whole numbers, counted from 0")
    flat = labels.reshape(-1)
    if len(flat) and (flat.min() < 0 or flat.max() >= MAX_CLASSES):
        raise DataError(f"{place} runs from {flat.min()} to {flat.max()}: labels count from 0 to {MAX_CLASSES - 1} at most")
    return flat.astype(np.int64)


def read_idx_folder(folder: Path) -> dict[str, ImageSet]:
    """Return the image sets of MNIST's four idx files, gzipped or not, in a folder.

    Raises:
        DataError: one is missing, damaged or contradicts its header.
    """
    sets = {}
    for part, stem in (("train", "train"), ("test", "t10k")):
        images_path = _idx_file(folder, f"{stem}-images-idx3-ubyte")
        labels_path = _idx_file(folder, f"{stem}-labels-idx1-ubyte")
        keys = (images_path.name, labels_path.name)
        sets[part] = _checked_set(folder, keys, _read_idx(images_path, IDX_IMAGES_MAGIC), _read_idx(labels_path, IDX_LABELS_MAGIC))
    return sets


def is_idx_folder(folder: Path) -> bool:
    """Return whether a folder holds MNIST's idx files."""
    return any((folder / f"train-images-idx3-ubyte{suffix}").is_file() for suffix in ("", ".gz"))


def _idx_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{folder}: misses {name} or {name}.gz")


def _read_idx(path: Path, magic: int) -> NDArray[np.uint8]:
    num_dimensions = magic & 0xFF
    header_bytes = 4 + 4 * num_dimensions
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found, *shape = struct.unpack(f">{1 + num_dimensions}I", content[:header_bytes])
    except READ_FAULTS as error:
        raise DataError(f"{path}: not a readable idx file ({error}): fetch or copy it again") from None
    if found != magic or prod(shape) != len(content) - header_bytes:
        raise DataError(
            f"{path}: its header (magic {found:#x}, shape {tuple(shape)}) does not fit its {len(content)} bytes: fetch or copy it again"
        )
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape)


def is_cifar_folder(folder: Path) -> bool:
    """Return whether a folder holds CIFAR-10's binary archive, or what was unpacked from it."""
    return any((folder / name).is_file() for name in (CIFAR_ARCHIVE, *CIFAR_FILES["test"]))


def read_cifar_folder(folder: Path) -> dict[str, ImageSet]:
    """Return CIFAR-10's image sets from its binary archive, packed or unpacked, in a folder.

    Raises:
        DataError: a batch is missing or damaged.
    """
    batches: dict[str, bytes] = {}
    try:
        if (folder / CIFAR_ARCHIVE).is_file():
            with tarfile.open(folder / CIFAR_ARCHIVE, "r:gz") as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.isfile() else None
                    if content is not None:
                        batches[Path(member.name).name] = content.read()
        else:
            batches = {path.name: path.read_bytes() for path in folder.glob("*.bin")}
    except READ_FAULTS as error:
        raise DataError(f"{folder}: CIFAR-10's binary archive can't be read ({error}): fetch or copy it again") from None
    record_bytes = 1 + prod(CIFAR_SHAPE)
    sets = {}
    for part, names in CIFAR_FILES.items():
        wrong = [name for name in names if not batches.get(name) or len(batches[name]) % record_bytes]
        if wrong:
            raise DataError(f"{folder}: {', '.join(wrong)} missing or cut short: fetch or copy CIFAR-10's binary archive again")
        records = np.concatenate([np.frombuffer(batches[name], np.uint8).reshape(-1, record_bytes) for name in names])
        labels = _checked_labels(f"{folder}: {names[0]}", records[:, 0])
        sets[part] = ImageSet(images=np.ascontiguousarray(records[:, 1:]).reshape(-1, *CIFAR_SHAPE), labels=labels)
    return sets
