"""ResNet18 for small images (He et al. 2016, Deep Residual Learning for Image Recognition)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from federation.errors import SettingsError

STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
"""Channels and stride of the four stages; two blocks each."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is projected where the shape changes."""

    def __init__(self, num_inputs: int, num_outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_inputs, num_outputs, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(num_outputs)
        self.conv2 = nn.Conv2d(num_outputs, num_outputs, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(num_outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or num_inputs != num_outputs:
            projection = nn.Conv2d(num_inputs, num_outputs, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(num_outputs))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the block's features."""
        residual = functional.relu(self.norm1(self.conv1(features)))
        residual = self.norm2(self.conv2(residual))
        return functional.relu(residual + self.shortcut(features))


class ResNet18(nn.Module):
    """ResNet18 with a stem for 28-pixel images: 3x3 stride 1 and no max-pool, as is usual for CIFAR.

    11.17 million parameters for 3 channels. Input N x C x H x W, normalised; output logits N x num_classes.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        num_channels, height, width = image_shape
        if min(height, width) < 1:
            raise SettingsError(f"model 'resnet18' needs images of at least 1x1 pixel, got {height}x{width}")
        self.stem = nn.Conv2d(num_channels, STAGES[0][0], kernel_size=3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(STAGES[0][0])
        blocks: list[nn.Module] = []
        num_inputs = STAGES[0][0]
        for num_outputs, stride in STAGES:
            blocks += [ResidualBlock(num_inputs, num_outputs, stride), ResidualBlock(num_outputs, num_outputs, 1)]
            num_inputs = num_outputs
        self.blocks = nn.Sequential(*blocks)
        self.output = nn.Linear(num_inputs, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        features = functional.relu(self.stem_norm(self.stem(images)))
        features = functional.adaptive_avg_pool2d(self.blocks(features), 1)
        logits: torch.Tensor = self.output(features.flatten(1))
        return logits
