"""Reading a folder of images sorted into class sub-folders: a hospital's own data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from federation.errors import DataError
from federation.images import ImageSet
from federation.partition import hold_out
from federation.settings import MAX_CLASSES

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})

PART_FOLDERS = {"train": ("train",), "test": ("test",), "validation": ("val", "valid", "validation")}

TEST_SHARE = 0.2
SPLIT_SEED = 42
"""Fixed: every process that reads the folder must see the same test images."""

GREY_MODES = frozenset({"1", "L", "LA"})
COLOUR_MODES = frozenset({"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"})

NUM_NAMED = 10
"""Unreadable images named in the error; the rest are counted."""


def read_image_folder(folder: Path, size: int, class_names: tuple[str, ...] = ()) -> tuple[tuple[str, ...], dict[str, ImageSet]]:
    """Return class names and the image sets `train`, `test` and perhaps `validation` of a folder.

    Args:
        folder: holds one sub-folder of PNG, JPEG, TIFF or BMP images per class; or `train` and `test` (and
            perhaps `val`) folders that do. Without those, 20 % of each class become the test set, by a fixed seed.
        size: height and width in pixels every image is resized to (not keeping its aspect).
        class_names: the classes, in the order of their labels; of some there may be no images here. By default the sub-folders.

    Returns:
        Class names, by default in alphabetical order; images of one channel where all are grey, of three otherwise.

    Raises:
        DataError: no class folders, an empty one, or images that can't be read (the text lists them).
    """
    roots = {part: folder / name for part, names in PART_FOLDERS.items() for name in names if (folder / name).is_dir()}
    if "train" not in roots or "test" not in roots:
        roots = {"all": folder}
    found_names = {path.name for root in roots.values() for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    names = [*class_names] or sorted(found_names)
    if unknown := sorted(found_names - {*names}):
        allowed = ", ".join(names[:NUM_NAMED])
        raise DataError(f"{folder}: {', '.join(unknown[:NUM_NAMED])} not among data.class_names ({allowed}): rename, or move away")
    if len(names) < 2:
        raise DataError(f"{folder}: expected one sub-folder of images per class, at least two; found {names or 'none'}")
    if len(names) > MAX_CLASSES:
        raise DataError(f"{folder}: {len(names)} class sub-folders, at most {MAX_CLASSES} are possible")
    files = {part: [(path, label) for label, name in enumerate(names) for path in _images_in(root / name)] for part, root in roots.items()}
    for part, found in files.items():
        if not found:
            raise DataError(f"{roots[part]}: no {', '.join(sorted(SUFFIXES))} images in its class sub-folders")
    absent = [name for label, name in enumerate(names) if not any(label == other for found in files.values() for _, other in found)]
    if absent and not class_names:
        raise DataError(
            f"{folder}: no images in {', '.join(absent[:NUM_NAMED])}: add some, remove the folder, "
            "or name all classes in data.class_names (FEDMQ_CLASS_NAMES on a node) if this site has none of them"
        )
    num_channels = _num_channels([path for found in files.values() for path, _ in found])
    sets = {part: _read(found, size, num_channels) for part, found in files.items()}
    if "all" in sets:
        whole = sets.pop("all")
        train, test = hold_out(whole.labels, np.arange(len(whole)), TEST_SHARE, SPLIT_SEED)
        if len(test) == 0:
            raise DataError(f"{folder}: too few images to keep any for the test: every class needs two or more")
        sets = {"train": whole.take(train), "test": whole.take(test)}
    return tuple(names), sets


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    # Sorted, because the order in which a file system lists names differs between machines.
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))


def _num_channels(paths: list[Path]) -> int:
    """Return 1 where every image is grey, else 3; open every file's header, and refuse what has no 8-bit pixels."""
    faults, modes = [], set()
    for path in paths:
        try:
            with Image.open(path) as image:
                modes.add(image.mode)
                if image.mode not in GREY_MODES | COLOUR_MODES:
                    faults.append(f"{path}: {image.mode} pixels; convert it to 8 bits a channel with the window you want")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            faults.append(f"{path}: {error}")
    _refuse(faults)
    return 1 if modes <= GREY_MODES else 3


def _read(files: list[tuple[Path, int]], size: int, num_channels: int) -> ImageSet:
    images = np.empty((len(files), num_channels, size, size), np.uint8)
    faults = []
    for index, (path, _) in enumerate(files):
        try:
            with Image.open(path) as image:
                upright = ImageOps.exif_transpose(image).convert("L" if num_channels == 1 else "RGB")
                pixels = np.asarray(upright if upright.size == (size, size) else upright.resize((size, size), Image.Resampling.BILINEAR))
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            faults.append(f"{path}: {error}")
            continue
        images[index] = pixels.reshape(size, size, num_channels).transpose(2, 0, 1)
    _refuse(faults)
    return ImageSet(images=images, labels=np.array([label for _, label in files], np.int64))


def _refuse(faults: list[str]) -> None:
    if faults:
        shown = "\n".join(f"  {fault}" for fault in faults[:NUM_NAMED])
        more = f"\n  and {len(faults) - NUM_NAMED} more" if len(faults) > NUM_NAMED else ""
        raise DataError(f"{len(faults)} image(s) can't be used: repair or remove them\n{shown}{more}")
