"""The proof of concept's small CNN for MNIST."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from federation.errors import SettingsError

MIN_SIDE_PIXELS = 4
"""Two 2x2 pools must leave at least one pixel."""


class MnistCNN(nn.Module):
    """Two 3x3 convolutions with 2x2 max-pools, then 64 hidden units; no dropout, no normalisation layers.

    The paper only says "a CNN": this is the customary small one, 105,866 parameters for 1 x 28 x 28 and 10 classes.
    Input N x C x H x W, normalised; output logits N x num_classes.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        num_channels, height, width = image_shape
        if min(height, width) < MIN_SIDE_PIXELS:
            raise SettingsError(
                f"model 'mnist_cnn' needs images of at least {MIN_SIDE_PIXELS}x{MIN_SIDE_PIXELS} pixels, got {height}x{width}"
            )
        self.conv1 = nn.Conv2d(num_channels, 16, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=3, padding=1)
        self.hidden = nn.Linear(32 * (height // 4) * (width // 4), 64)
        self.output = nn.Linear(64, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        features = images
        for convolution in (self.conv1, self.conv2):
            # Pool, then ReLU: see SimpleCNN.
            features = functional.relu(functional.max_pool2d(convolution(features), 2))
        logits: torch.Tensor = self.output(functional.relu(self.hidden(features.flatten(1))))
        return logits
