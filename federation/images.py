"""Labelled images in memory, and a data set's split of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Images: TypeAlias = NDArray[np.uint8]
Labels: TypeAlias = NDArray[np.int64]
Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """Labelled images: `images` uint8 N x C x H x W with values 0 to 255, `labels` int64 N, counted from 0."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        num_channels, height, width = self.images.shape[1:]
        return num_channels, height, width

    def take(self, indices: Indices) -> ImageSet:
        """Return a copy of the examples at `indices`, in that order."""
        return ImageSet(images=self.images[indices], labels=self.labels[indices])

    def class_counts(self, num_classes: int) -> Labels:
        """Return how many examples each class has."""
        return np.bincount(self.labels, minlength=num_classes).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A data set with its split into training, test and perhaps validation images."""

    name: str
    class_names: tuple[str, ...]
    train: ImageSet
    test: ImageSet
    validation: ImageSet | None
    licence: str
    """As its makers state it; empty where FedMQ does not know."""

    @property
    def num_classes(self) -> int:
        """How many classes the labels name."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.train.image_shape


def numbered_names(num_classes: int) -> tuple[str, ...]:
    """Return names for classes that the data do not name."""
    return tuple(f"class {label}" for label in range(num_classes))


def named_classes(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names, or none where they are only `numbered_names`: such ones say nothing of what the labels mean."""
    return () if class_names == numbered_names(len(class_names)) else class_names


def normalise(images: Images) -> NDArray[np.float32]:
    """Return network input, float32 N x C x H x W in [-1, 1], for engines other than torch: (x / 255 - 0.5) / 0.5."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1.0)
