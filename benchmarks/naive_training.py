"""The thesis's local loop as it is usually written: DataLoader, PIL, one sample at a time. What ours is measured against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

MEAN, DEVIATION = 0.5, 0.5


class PillowDataset(Dataset[tuple[torch.Tensor, int]]):
    """Images as the thesis's data set class gives them: PIL, then torchvision's ToTensor and Normalize, step for step."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self._images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        pixels = self._images[index]
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
        array = np.array(image, copy=True)
        tensor = torch.from_numpy(array).view(image.size[1], image.size[0], len(image.getbands()))
        tensor = tensor.permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        mean, deviation = (torch.as_tensor([value] * len(tensor)).view(-1, 1, 1) for value in (MEAN, DEVIATION))
        return tensor.clone().sub_(mean).div_(deviation), int(self._labels[index])


def simple_cnn(num_channels: int, side_pixels: int, num_classes: int) -> nn.Sequential:
    """Return the thesis's SimpleCNN in plain layers."""
    return nn.Sequential(
        *(nn.Conv2d(num_channels, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * (side_pixels // 8) ** 2, 128), nn.ReLU(), nn.Dropout(0.25), nn.Linear(128, num_classes)),
    )


def train_naively(
    network: nn.Module,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    num_classes: int,
    orders: Sequence[NDArray[np.int64]],
    batch_size: int = 16,
    learning_rate: float = 0.001,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    proximal_mu: float = 0.0,
) -> list[float]:
    """Train in place, one epoch per order of the examples; return each epoch's mean loss without the proximal term."""
    counts = np.bincount(labels, minlength=num_classes)
    weights = torch.tensor([len(labels) / (num_classes * count) if count else 0.0 for count in counts], dtype=torch.float32)
    criterion = nn.CrossEntropyLoss(weight=weights)
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=momentum, weight_decay=weight_decay)
    anchors = [weight.detach().clone() for weight in network.parameters()]
    network.train()
    losses = []
    for order in orders:
        # A generator of its own: a DataLoader otherwise draws from the one that dropout uses.
        loader = DataLoader(
            PillowDataset(images, labels), batch_size=batch_size, sampler=order.tolist(), num_workers=0, generator=torch.Generator()
        )
        total = 0.0
        for batch, targets in loader:
            optimizer.zero_grad()
            loss = criterion(network(batch), targets)
            objective = loss
            if proximal_mu > 0:
                pulls = [((weight - anchor) ** 2).sum() for weight, anchor in zip(network.parameters(), anchors, strict=True)]
                objective = loss + proximal_mu / 2 * torch.stack(pulls).sum()
            objective.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), max_grad_norm)
            optimizer.step()
            total += loss.item() * len(targets)
        losses.append(total / len(labels))
    return losses
