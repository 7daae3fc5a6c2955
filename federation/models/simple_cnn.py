"""The thesis's SimpleCNN."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from federation.errors import SettingsError

MIN_SIDE_PIXELS = 8
"""Three 2x2 pools must leave at least one pixel."""


class SimpleCNN(nn.Module):
    """Three 3x3 convolutions with 2x2 max-pools, then 128 hidden units with dropout 0.25.

    98,601 parameters for 3 x 28 x 28 and 9 classes. Input N x C x H x W, normalised; output logits N x num_classes.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        num_channels, height, width = image_shape
        if min(height, width) < MIN_SIDE_PIXELS:
            raise SettingsError(
                f"model 'simple_cnn' needs images of at least {MIN_SIDE_PIXELS}x{MIN_SIDE_PIXELS} pixels, got {height}x{width}"
            )
        self.conv1 = nn.Conv2d(num_channels, 16, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, padding=1)
        self.conv3 = nn.Conv2d(32, 64, kernel_size=3, padding=1)
        self.hidden = nn.Linear(64 * (height // 8) * (width // 8), 128)
        self.dropout = nn.Dropout(0.25)
        self.output = nn.Linear(128, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        features = images
        for convolution in (self.conv1, self.conv2, self.conv3):
            # Pool, then ReLU: the same values and gradients as the other way round (ReLU is monotonic), on a quarter of the elements.
            features = functional.relu(functional.max_pool2d(convolution(features), 2))
        hidden: torch.Tensor = self.dropout(functional.relu(self.hidden(features.flatten(1))))
        logits: torch.Tensor = self.output(hidden)
        return logits
