"""SGD and AdamW on a network's weights as one vector."""

from __future__ import annotations

from math import sqrt
from typing import Protocol

import numpy as np
import torch
from torch import nn

from federation.params import Params
from federation.settings import TrainingSettings

ALIGNMENT_SCALARS = 16
"""Each weight tensor starts on 64 bytes: a cache line, and the widest vector register."""

CLIP_EPSILON = 1e-6
"""As in torch.nn.utils.clip_grad_norm_."""

ADAM_BETAS = (0.9, 0.999)
"""Kingma and Ba 2015, Adam, and torch.optim.AdamW's default."""

ADAM_EPSILON = 1e-8
"""Likewise."""


class FlatWeights:
    """A network's trainable weights as one vector, and their gradient as another.

    The module's parameters become views of the vector, 4-dimensional ones in channels_last memory, and their
    gradients views of the other. Clipping and SGD are then six operations a batch instead of sixty: 1.15x faster
    for SimpleCNN at batch 16 than torch.optim.SGD(fused=True) on the separate tensors, by the same arithmetic.

    Attributes:
        weights: float32, changed in place.
        gradient: float32, of the same length; gaps between tensors are 0 in both.
    """

    def __init__(self, module: nn.Module) -> None:
        named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        parameters = list(named.values())
        sizes = [-(-parameter.numel() // ALIGNMENT_SCALARS) * ALIGNMENT_SCALARS for parameter in parameters]
        self.weights = torch.zeros(sum(sizes), device=parameters[0].device)
        self.gradient = torch.zeros_like(self.weights)
        self._named, self._starts = named, [sum(sizes[:index]) for index in range(len(sizes))]
        for parameter, start in zip(parameters, self._starts, strict=True):
            view = _view_like(parameter, self.weights, start)
            view.copy_(parameter.data)
            parameter.data = view
            parameter.grad = _view_like(parameter, self.gradient, start)

    def vector_of(self, tensors: Params) -> torch.Tensor:
        """Return tensors of the network's weights, by name, as one vector that lies as `weights` does.

        Args:
            tensors: float32; of tensors that are no weights, such as statistics, nothing is read.
        """
        vector = torch.zeros_like(self.weights)
        for (name, parameter), start in zip(self._named.items(), self._starts, strict=True):
            # A copy, because torch warns of arrays that may not be written to (those read from bytes).
            _view_like(parameter, vector, start).copy_(torch.from_numpy(np.array(tensors[name], dtype=np.float32, order="C")))
        return vector


class Optimiser(Protocol):
    """Turns the gradient into a step; starts anew each round, for what it remembers never leaves the node."""

    def step(self) -> None:
        """Change the weights in place; the gradient may be used up."""
        ...


def build_optimiser(settings: TrainingSettings, flat: FlatWeights, learning_rate: float) -> Optimiser:
    """Return the optimiser that the settings name, at this round's learning rate."""
    match settings.optimiser:
        case "sgd":
            return Sgd(flat, learning_rate=learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay)
        case "adamw":
            return AdamW(flat, learning_rate=learning_rate, weight_decay=settings.weight_decay)


def total_step(settings: TrainingSettings, learning_rate: float, num_steps: int) -> float:
    """Return how far a constant gradient of 1 moves a weight in so many steps.

    For SGD, learning_rate * num_steps without momentum, and in the long run 1 / (1 - momentum) times that. NaN for AdamW, which
    divides a gradient's size out of its steps.
    """
    if settings.optimiser != "sgd":
        return float("nan")
    momentum = settings.momentum
    # The j-th last gradient goes on moving the weights for j steps: sum over j of (1 - momentum^j) / (1 - momentum).
    return learning_rate * (num_steps - momentum * (1 - momentum**num_steps) / (1 - momentum)) / (1 - momentum)


def clip(gradient: torch.Tensor, max_norm: float) -> None:
    """Scale the gradient in place so that its norm is `max_norm` at most."""
    norm = torch.linalg.vector_norm(gradient)
    gradient.mul_(torch.clamp(max_norm / (norm + CLIP_EPSILON), max=1.0))


class Sgd:
    """Stochastic gradient descent, by torch.optim.SGD's definition of momentum and decay."""

    def __init__(self, flat: FlatWeights, *, learning_rate: float, momentum: float, weight_decay: float) -> None:
        self._flat = flat
        self._learning_rate = learning_rate
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._velocity = torch.zeros_like(flat.weights)

    def step(self) -> None:
        """Take one step."""
        weights, gradient = self._flat.weights, self._flat.gradient
        if self._weight_decay > 0:
            gradient.add_(weights, alpha=self._weight_decay)
        self._velocity.mul_(self._momentum).add_(gradient)
        weights.sub_(self._velocity, alpha=self._learning_rate)


class AdamW:
    """Adam with decoupled weight decay: Loshchilov and Hutter 2019, Decoupled Weight Decay Regularization, algorithm 2."""

    def __init__(self, flat: FlatWeights, *, learning_rate: float, weight_decay: float) -> None:
        self._flat = flat
        self._learning_rate = learning_rate
        self._weight_decay = weight_decay
        self._mean = torch.zeros_like(flat.weights)
        self._square = torch.zeros_like(flat.weights)
        self._num_steps = 0

    def step(self) -> None:
        """Take one step."""
        weights, gradient = self._flat.weights, self._flat.gradient
        first, second = ADAM_BETAS
        self._num_steps += 1
        weights.mul_(1 - self._learning_rate * self._weight_decay)
        self._mean.lerp_(gradient, 1 - first)
        self._square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
        scale = sqrt(1 - second**self._num_steps)
        divisor = self._square.sqrt().div_(scale).add_(ADAM_EPSILON)
        weights.addcdiv_(self._mean, divisor, value=-self._learning_rate / (1 - first**self._num_steps))


def _view_like(parameter: torch.Tensor, vector: torch.Tensor, start: int) -> torch.Tensor:
    flat = vector[start : start + parameter.numel()]
    if parameter.dim() != 4:
        return flat.view(parameter.shape)
    num_outputs, num_inputs, height, width = parameter.shape
    return flat.view(num_outputs, height, width, num_inputs).permute(0, 3, 1, 2)
