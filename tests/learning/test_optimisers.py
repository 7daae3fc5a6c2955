"""Optimisers on the flat vector against torch's own on the separate tensors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from federation.learning.optimisers import FlatWeights, build_optimiser, clip
from federation.settings import TrainingSettings


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 6 * 6, 4))


@pytest.mark.parametrize(
    "settings",
    [
        {"optimiser": "sgd", "momentum": 0.9, "weight_decay": 0.01},
        {"optimiser": "sgd", "momentum": 0.0},
        {"optimiser": "adamw", "weight_decay": 0.05},
        {"optimiser": "adamw"},
    ],
)
def test_same_weights_as_torch_after_some_steps(settings: dict[str, Any]) -> None:
    ours = network()
    theirs = copy.deepcopy(ours)
    training = TrainingSettings.model_validate(settings)
    flat = FlatWeights(ours)
    optimiser = build_optimiser(training, flat, 0.01)
    oracle: torch.optim.Optimizer = (
        torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=training.weight_decay)
        if training.optimiser == "adamw"
        else torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=training.momentum, weight_decay=training.weight_decay)
    )
    generator = torch.Generator().manual_seed(1)
    for _ in range(8):
        images, targets = torch.randn(6, 3, 8, 8, generator=generator), torch.randint(0, 4, (6,), generator=generator)
        flat.gradient.zero_()
        functional.cross_entropy(ours(images), targets).backward()  # type: ignore[no-untyped-call]
        oracle.zero_grad()
        functional.cross_entropy(theirs(images), targets).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        with torch.no_grad():
            clip(flat.gradient, 0.5)
            optimiser.step()
        oracle.step()
    for mine, theirs_too in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs_too, rtol=1e-4, atol=1e-5)


def test_gaps_between_tensors_stay_zero() -> None:
    """A vector's norm must be the gradient's: nothing may grow where no tensor lies."""
    module = network()
    flat = FlatWeights(module)
    optimiser = build_optimiser(TrainingSettings.model_validate({"optimiser": "adamw", "weight_decay": 0.1}), flat, 0.1)
    for _ in range(3):
        flat.gradient.zero_()
        module(torch.ones(2, 3, 8, 8)).square().sum().backward()
        with torch.no_grad():
            optimiser.step()
    num_weights = sum(parameter.numel() for parameter in module.parameters())
    assert len(flat.weights) > num_weights
    assert int(flat.weights.count_nonzero()) <= num_weights
