"""A plain FedAvg of the thesis's recipe that shares no code with FedMQ: what FedMQ's accuracy is compared with.

Written the way one would write it in a notebook: one network, one loop, torch.optim, float32 averages, and
nothing from `federation`. Random numbers are torch's own, so figures agree with FedMQ's on average, not digit
for digit.

    python -m tests.learning.fedavg_oracle --data FILE.npz --rounds 20 --seeds 0 1 2 --alpha 0.5
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


def make_network(num_channels: int, side_pixels: int, num_classes: int) -> nn.Sequential:
    """Return the thesis's network, as its Figure 3 draws it."""
    return nn.Sequential(
        nn.Conv2d(num_channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (side_pixels // 8) ** 2, 128),
        nn.ReLU(),
        nn.Dropout(0.25),
        nn.Linear(128, num_classes),
    )


def to_network_input(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Return uint8 N x H x W (x C) as float32 N x C x H x W, scaled to [0, 1] and then to [-1, 1]."""
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    return (torch.tensor(pixels).permute(0, 3, 1, 2).contiguous() / 255 - 0.5) / 0.5


def fedavg_accuracies(
    train_pixels: NDArray[np.uint8],
    train_labels: NDArray[np.integer],
    test_pixels: NDArray[np.uint8],
    test_labels: NDArray[np.integer],
    parts: Sequence[NDArray[np.integer]],
    *,
    num_rounds: int,
    seed: int,
    local_epochs: int = 5,
    learning_rate: float = 0.001,
    batch_size: int = 16,
    proximal_mu: float = 0.0,
) -> list[float]:
    """Return the test accuracy of the averaged network after every round.

    `parts` are the clients' indices into the training arrays, validation already taken away.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    x_train, y_train = to_network_input(train_pixels), torch.tensor(train_labels.astype("int64").ravel())
    x_test, y_test = to_network_input(test_pixels), torch.tensor(test_labels.astype("int64").ravel())
    num_classes = int(max(y_train.max(), y_test.max())) + 1
    server = make_network(x_train.shape[1], x_train.shape[2], num_classes)
    accuracies = []
    for round_index in range(num_rounds):
        lr = learning_rate * 0.5 ** (round_index // 10)
        num_all = sum(len(part) for part in parts)
        average = {name: torch.zeros_like(value) for name, value in server.state_dict().items()}
        for part in parts:
            client = train_client(server, x_train[part], y_train[part], num_classes, local_epochs, lr, batch_size, proximal_mu)
            for name, value in client.state_dict().items():
                average[name] += value * (len(part) / num_all)
        server.load_state_dict(average)
        server.eval()
        with torch.no_grad():
            predicted = torch.cat([server(x_test[start : start + 500]).argmax(1) for start in range(0, len(x_test), 500)])
        accuracies.append(float((predicted == y_test).float().mean()))
    return accuracies


def train_client(
    server: nn.Module, x: torch.Tensor, y: torch.Tensor, num_classes: int, epochs: int, lr: float, batch_size: int, mu: float
) -> nn.Module:
    """Return a copy of the server's network after a client's local epochs."""
    client = copy.deepcopy(server)
    client.train()
    anchors = [weight.detach().clone() for weight in client.parameters()]
    weights = torch.zeros(num_classes)
    for label in range(num_classes):
        count = int((y == label).sum())
        weights[label] = len(y) / (num_classes * count) if count else 0.0
    criterion = nn.CrossEntropyLoss(weight=weights)
    optimizer = torch.optim.SGD(client.parameters(), lr=lr, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(y)), batch_size):
            optimizer.zero_grad()
            loss = criterion(client(x[batch]), y[batch])
            if mu > 0:
                loss = loss + mu / 2 * sum(((w - a) ** 2).sum() for w, a in zip(client.parameters(), anchors, strict=True))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(client.parameters(), 1.0)
            optimizer.step()
    return client


def dirichlet_parts(labels: NDArray[np.integer], num_clients: int, alpha: float, partition_seed: int) -> list[NDArray[np.integer]]:
    """Return the clients' training indices: the thesis's Dirichlet split, less a random fifth of each class."""
    rng = np.random.RandomState(partition_seed)
    labels = labels.ravel()
    clients: list[list[int]] = [[] for _ in range(num_clients)]
    for label in np.unique(labels):
        members = np.nonzero(labels == label)[0]
        rng.shuffle(members)
        cuts = (rng.dirichlet([alpha] * num_clients).cumsum() * len(members)).astype(int)
        first = 0
        for client, last in zip(clients, [*cuts[:-1], len(members)], strict=True):
            mine = members[first:last]
            client.extend(mine[: len(mine) - len(mine) // 5].tolist())
            first = last
    return [np.array(client) for client in clients]


def main(argv: Sequence[str]) -> int:
    """Print one JSON line per seed, and the mean of their last accuracies."""
    parser = argparse.ArgumentParser(description="A plain FedAvg of the thesis's recipe")
    parser.add_argument("--data", type=Path, required=True, help=".npz file with MedMNIST's or Keras' keys")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--alpha", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(argv)
    arrays = np.load(options.data, allow_pickle=False)
    keys = ("train_images", "train_labels", "test_images", "test_labels")
    if "x_train" in arrays:
        keys = ("x_train", "y_train", "x_test", "y_test")
    x_train, y_train, x_test, y_test = (arrays[key] for key in keys)
    parts = dirichlet_parts(y_train, options.nodes, options.alpha, partition_seed=42)
    last = []
    for seed in options.seeds:
        accuracies = fedavg_accuracies(
            x_train, y_train, x_test, y_test, parts, num_rounds=options.rounds, seed=seed, local_epochs=options.epochs
        )
        last.append(accuracies[-1])
        sys.stdout.write(json.dumps({"seed": seed, "accuracies": [round(accuracy, 4) for accuracy in accuracies]}) + "\n")
        sys.stdout.flush()
    sys.stdout.write(json.dumps({"mean_final_accuracy": round(sum(last) / len(last), 4)}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
