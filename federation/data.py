"""Data sets by name, file or folder.

A name is looked up as a path, then in the data folder, then among the known sets, which are fetched into
the cache. `list_datasets` names those.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from federation.download import fetch
from federation.errors import DataError
from federation.image_files import is_cifar_folder, is_idx_folder, read_cifar_folder, read_idx_folder, read_npz
from federation.image_folder import SPLIT_SEED, TEST_SHARE, read_image_folder
from federation.images import Dataset, Images, ImageSet, Indices, Labels, normalise, numbered_names
from federation.known_datasets import KNOWN_DATASETS, REFUSED_DATASETS, KnownDataset
from federation.partition import hold_out
from federation.settings import DataSettings

__all__ = [
    "Dataset",
    "ImageSet",
    "Images",
    "Indices",
    "KnownDataset",
    "Labels",
    "list_datasets",
    "load_dataset",
    "normalise",
]

DEFAULT_SIZE = 28
"""Stands for a set's own size where it comes in one only."""

DIGITS_MAX = 16
"""scikit-learn's digits have 17 grey levels, 0 to 16."""


def list_datasets() -> tuple[KnownDataset, ...]:
    """Return the facts of every data set known by name."""
    return tuple(KNOWN_DATASETS.values())


def load_dataset(
    settings: DataSettings, *, data_dir: Path | None, cache_dir: Path, progress: bool = False, download: bool = True
) -> Dataset:
    """Return a data set whole, in memory.

    Args:
        settings: `name` is a path to an `.npz` file or a folder (of class sub-folders, idx files or CIFAR's binary
            files), the name of one in `data_dir` (NAME.npz, or NAME_SIZE.npz for sizes other than 28), or a known set.
        data_dir: FEDMQ_DATA_DIR; None: there is none.
        cache_dir: where fetched files are kept.
        progress: draw fetching on standard error.
        download: whether a known set may be fetched; one in the cache is used either way.

    Raises:
        DataError: no such set, or one that can't be used; says what to do.
    """
    if settings.name in REFUSED_DATASETS:
        raise DataError(f"{settings.name} can't be used: {REFUSED_DATASETS[settings.name]}; `fedmq data list` shows what can")
    local = _find_local(settings, data_dir)
    if local is not None:
        return _load_local(local, settings)
    if settings.class_names:
        raise DataError(f"data.class_names names the classes of a file or folder of your own; {settings.name} has its own: remove it")
    known = KNOWN_DATASETS.get(settings.name)
    if known is None:
        looked = f"{data_dir}" if data_dir else "FEDMQ_DATA_DIR (not set)"
        raise DataError(
            f"no data set {settings.name!r}: not a file or folder, not in {looked}, not a known name ({', '.join(KNOWN_DATASETS)}); "
            "set data.name to one of these, or put NAME.npz or a folder of class sub-folders there"
        )
    return _load_known(known, settings, cache_dir, progress=progress, download=download)


def _find_local(settings: DataSettings, data_dir: Path | None) -> Path | None:
    path = Path(settings.name).expanduser()
    if path.exists():
        return path
    if path.suffix == ".npz" or len(path.parts) > 1:
        raise DataError(f"{path}: no such file or folder; check data.name")
    if data_dir is None:
        return None
    if not data_dir.is_dir():
        raise DataError(f"{data_dir}: no such folder; set FEDMQ_DATA_DIR to one that exists, or unset it")
    sized = f"{settings.name}.npz" if settings.size == DEFAULT_SIZE else f"{settings.name}_{settings.size}.npz"
    return next((candidate for candidate in (data_dir / sized, data_dir / settings.name) if candidate.exists()), None)


def _load_local(path: Path, settings: DataSettings) -> Dataset:
    name = path.name.removesuffix(".npz")
    if path.is_file():
        if path.suffix != ".npz":
            raise DataError(f"{path}: not an .npz file; data.name takes an .npz file, a folder of class sub-folders or a known name")
        return _named(name, read_npz(path), settings, place=str(path))
    if is_idx_folder(path):
        return _named(name, read_idx_folder(path), settings, place=str(path))
    binaries = next((folder for folder in (path, path / "cifar-10-batches-bin") if is_cifar_folder(folder)), None)
    if binaries is not None:
        return _named("cifar10", read_cifar_folder(binaries), settings, place=str(path))
    class_names, sets = read_image_folder(path, settings.size, tuple(settings.class_names))
    return _dataset(name, class_names, sets, licence="")


def _load_known(known: KnownDataset, settings: DataSettings, cache_dir: Path, *, progress: bool, download: bool) -> Dataset:
    size = known.sizes[0] if settings.size == DEFAULT_SIZE and len(known.sizes) == 1 else settings.size
    if size not in known.files:
        raise DataError(f"{known.name} does not come in {size} pixels: set data.size to {', '.join(map(str, known.sizes))}")
    if known.name == "digits":
        return _dataset(known.name, known.class_names, _digits(), licence=known.licence)
    files = known.files[size]
    absent = [file.name for file in files if not (cache_dir / file.name).is_file()]
    if absent and not download:
        raise DataError(
            f"{known.name} is not here: `fedmq data fetch {known.name}` fetches it, or put {absent[0]} into the folder of FEDMQ_DATA_DIR"
        )
    paths = [fetch(file, cache_dir, progress=progress) for file in files] if download else [cache_dir / file.name for file in files]
    match known.name:
        case "mnist":
            sets = read_idx_folder(paths[0].parent)
        case "cifar10":
            sets = read_cifar_folder(paths[0].parent)
        case _:
            sets = read_npz(paths[0])
    return _named(known.name, sets, settings, place=str(paths[0]))


def _named(name: str, sets: dict[str, ImageSet], settings: DataSettings, *, place: str) -> Dataset:
    """Name the classes after the known set a file is, or is part of (bloodmnist_half), if their number agrees."""
    if settings.size != DEFAULT_SIZE and any(images.image_shape[1:] != (settings.size, settings.size) for images in sets.values()):
        height, width = sets["train"].image_shape[1:]
        raise DataError(
            f"{place}: holds images of {height}x{width}, data.size asks for {settings.size}: remove data.size or choose another file"
        )
    num_classes = 1 + max(int(images.labels.max()) for images in sets.values())
    if settings.class_names:
        if num_classes > len(settings.class_names):
            raise DataError(f"{place}: labels run to {num_classes - 1}, data.class_names has {len(settings.class_names)} names, from 0")
        return _dataset(name, tuple(settings.class_names), sets, licence="")
    whole = KNOWN_DATASETS.get(name)
    known = whole or KNOWN_DATASETS.get(name.split("_", maxsplit=1)[0])
    if whole is not None and num_classes > whole.num_classes:
        raise DataError(f"{place}: labels run to {num_classes - 1}, {name} has classes 0 to {whole.num_classes - 1}: labels out of range")
    if known is not None and (known is whole or num_classes == known.num_classes):
        return _dataset(name, known.class_names, sets, licence=known.licence)
    if num_classes < 2:
        raise DataError(f"{place}: every label is 0; a classifier needs two classes or more")
    # A stray label would make a class of every number below it.
    absent = sorted(set(range(num_classes)) - {int(label) for images in sets.values() for label in np.unique(images.labels)})
    if absent:
        raise DataError(
            f"{place}: labels run to {num_classes - 1}, and no image has label {absent[0]}: "
            "number the classes from 0 without gaps, or name them all in data.class_names (FEDMQ_CLASS_NAMES on a node)"
        )
    return _dataset(name, numbered_names(num_classes), sets, licence="")


def _dataset(name: str, class_names: tuple[str, ...], sets: dict[str, ImageSet], *, licence: str) -> Dataset:
    return Dataset(
        name=name, class_names=class_names, train=sets["train"], test=sets["test"], validation=sets.get("validation"), licence=licence
    )


def _digits() -> dict[str, ImageSet]:
    bunch = load_digits()
    levels = np.asarray(bunch.images)[:, np.newaxis]
    # 0..16 onto 0..255; the largest level rounds to 255.
    images = ImageSet(images=np.rint(levels * (255 / DIGITS_MAX)).astype(np.uint8), labels=np.asarray(bunch.target).astype(np.int64))
    train, test = hold_out(images.labels, np.arange(len(images)), TEST_SHARE, SPLIT_SEED)
    return {"train": images.take(train), "test": images.take(test)}
