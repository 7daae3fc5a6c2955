"""Pixels to network input, in torch; `federation.images.normalise` is the same for other engines."""

from __future__ import annotations

import torch


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Return N x H x W x C pixels in [0, 255] as float32 N x C x H x W in [-1, 1], in channels_last memory.

    uint8 pixels are left as they were; float32 ones, which augmentation makes, are changed in place.
    """
    # (x / 255 - 0.5) / 0.5, in two operations.
    return pixels.to(torch.float32).div_(127.5).sub_(1.0).permute(0, 3, 1, 2)
