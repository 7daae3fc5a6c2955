"""Augmentation: random changes to training images that leave their class as it is.

Tensor operations over a block of a few hundred images at once, between gathering and normalising: no worker, no
picture library, and 6 to 38 microseconds an image (docs/results.md) beside about 250 of training. Flips and quarter
turns move pixels and are exact; turns, shifts and zooms are one bilinear resampling; colour is one multiply-add.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import pi

import numpy as np
import torch
from torch.nn import functional

from federation.errors import SettingsError
from federation.settings import AugmentationPreset, AugmentationSettings, TrainingSettings

LARGEST_PIXEL = 255.0

GREY = 127.5
"""What cutout leaves: 0 once normalised, as in the paper."""

PRESETS: Mapping[AugmentationPreset, AugmentationSettings] = {
    "none": AugmentationSettings(),
    # Tissue has no top, and its stain differs from laboratory to laboratory.
    "histology": AugmentationSettings(
        horizontal_flip=True, vertical_flip=True, quarter_turns=True, shift_share=0.05, brightness=0.1, colour=0.1
    ),
    # A cell lies any way round in the middle of its picture.
    "cells": AugmentationSettings(horizontal_flip=True, vertical_flip=True, quarter_turns=True),
    # A flipped digit is another sign; the ground is black.
    "digits": AugmentationSettings(rotation_degrees=10.0, shift_share=0.08, zoom_share=0.1, padding="black"),
    # A body lies almost straight, its heart on the left; exposure varies.
    "xray": AugmentationSettings(rotation_degrees=7.0, shift_share=0.05, zoom_share=0.05, brightness=0.1, contrast=0.1, padding="border"),
}
"""What each preset's name stands for."""

_PADDINGS = {"reflection": "reflection", "border": "border", "black": "zeros"}
"""Our names to torch's."""


class Augmentation:
    """Changes blocks of images at random.

    Args:
        settings: what to do.
        generator: every random number comes from it, drawn in the order of the blocks.
        image_shape: channels, height, width.

    Raises:
        SettingsError: quarter turns of images that are not square.
    """

    def __init__(self, settings: AugmentationSettings, generator: np.random.Generator, image_shape: tuple[int, int, int]) -> None:
        self._settings = settings
        self._generator = generator
        _, self._height, self._width = image_shape
        if settings.quarter_turns and self._height != self._width:
            raise SettingsError(
                f"training.augmentation turns images by 90 degrees, which {self._height}x{self._width} pixels don't allow: "
                "write the operations out as a table without quarter_turns"
            )

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return changed copies of uint8 N x H x W x C pixels as float32 of the same shape, in [0, 255]."""
        settings = self._settings
        moved = self._flip(pixels)
        values = moved.to(torch.float32)
        if settings.rotation_degrees or settings.shift_share or settings.zoom_share:
            values = self._warp(values)
        if settings.brightness or settings.contrast or settings.colour:
            values = self._tint(values)
        if settings.cutout_share:
            values = self._cut_out(values)
        return values

    def _flip(self, pixels: torch.Tensor) -> torch.Tensor:
        """Give each image one of the flips and quarter turns that are allowed, all equally likely."""
        settings, num_images = self._settings, len(pixels)
        if not (settings.horizontal_flip or settings.vertical_flip or settings.quarter_turns):
            return pixels
        horizontal = self._generator.integers(0, 2 if settings.horizontal_flip else 1, num_images)
        vertical = self._generator.integers(0, 2 if settings.vertical_flip else 1, num_images)
        turns = self._generator.integers(0, 4 if settings.quarter_turns else 1, num_images)
        # Both flips are a half turn: eight different images, or fewer, whatever is allowed.
        variants = horizontal ^ vertical, (turns + 2 * vertical) % 4
        result = torch.empty_like(pixels)
        for is_mirrored in (0, 1):
            for num_turns in range(4):
                chosen = torch.from_numpy(np.flatnonzero((variants[0] == is_mirrored) & (variants[1] == num_turns))).to(pixels.device)
                if len(chosen) == 0:
                    continue
                images = pixels.index_select(0, chosen)
                images = images.flip(2) if is_mirrored else images
                result.index_copy_(0, chosen, torch.rot90(images, num_turns, (1, 2)))
        return result

    def _warp(self, values: torch.Tensor) -> torch.Tensor:
        """Turn, shift and zoom each image in one resampling."""
        settings, num_images = self._settings, len(values)
        angles = self._spread(settings.rotation_degrees, num_images) * (pi / 180)
        scales = 1 + self._spread(settings.zoom_share, num_images)
        cosines, sines = np.cos(angles) / scales, np.sin(angles) / scales
        matrices = np.zeros((num_images, 2, 3), np.float32)
        # Coordinates run from -1 to 1 along each side: a turn of a picture that is not square has to undo that, and a
        # shift by a share of a side is twice that share.
        matrices[:, 0, 0], matrices[:, 0, 1] = cosines, -sines * (self._height / self._width)
        matrices[:, 1, 0], matrices[:, 1, 1] = sines * (self._width / self._height), cosines
        matrices[:, 0, 2], matrices[:, 1, 2] = (2 * self._spread(settings.shift_share, num_images) for _ in range(2))
        planes = values.permute(0, 3, 1, 2)
        grid = functional.affine_grid(torch.from_numpy(matrices).to(values.device), list(planes.shape), align_corners=False)
        warped = functional.grid_sample(planes, grid, padding_mode=_PADDINGS[settings.padding], align_corners=False)
        return warped.permute(0, 2, 3, 1).contiguous()

    def _tint(self, values: torch.Tensor) -> torch.Tensor:
        """Change brightness, contrast about the image's own mean, and each channel's strength."""
        settings, (num_images, _, _, num_channels) = self._settings, values.shape
        contrast = torch.from_numpy((1 + self._spread(settings.contrast, num_images)).astype(np.float32)).to(values.device)
        gains = (1 + self._spread(settings.brightness, num_images))[:, None] * (1 + self._spread(settings.colour, num_images, num_channels))
        gain = torch.from_numpy(gains.astype(np.float32)).to(values.device)
        offset = values.mean(dim=(1, 2, 3)) * (1 - contrast)
        scaled = values * (contrast[:, None] * gain)[:, None, None, :] + (offset[:, None] * gain)[:, None, None, :]
        return scaled.clamp_(0.0, LARGEST_PIXEL)

    def _cut_out(self, values: torch.Tensor) -> torch.Tensor:
        """Cover a square about a random pixel: DeVries and Taylor 2017, Improved Regularization of CNNs with Cutout."""
        half_side = self._settings.cutout_share * min(self._height, self._width) / 2
        covered = [
            np.abs(np.arange(length)[None, :] + 0.5 - self._generator.uniform(0, length, len(values))[:, None]) < half_side
            for length in (self._height, self._width)
        ]
        rows, columns = (torch.from_numpy(cover).to(values.device) for cover in covered)
        return values.masked_fill_((rows[:, :, None] & columns[:, None, :])[..., None], GREY)

    def _spread(self, limit: float, *shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """Return numbers drawn evenly from [-limit, limit]; zeros, and nothing drawn, where it is 0."""
        return self._generator.uniform(-limit, limit, shape) if limit else np.zeros(shape)


def build_augmentation(
    settings: TrainingSettings, generator: np.random.Generator, image_shape: tuple[int, int, int]
) -> Augmentation | None:
    """Return the augmentation that the settings name or spell out; None where it would do nothing.

    Raises:
        SettingsError: as `Augmentation`.
    """
    wanted = settings.augmentation
    operations = wanted if isinstance(wanted, AugmentationSettings) else PRESETS[wanted]
    return None if operations == AugmentationSettings(padding=operations.padding) else Augmentation(operations, generator, image_shape)
