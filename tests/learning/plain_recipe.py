"""The thesis's recipe as one plain loop: what training with default settings must repeat bit for bit.

Frozen on purpose: a change of the defaults, or of the order of one operation, is a change of every digest ever recorded.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from federation import models
from federation.params import Params
from federation.training import TrainingTask, derive_seed


def train_plainly(task: TrainingTask) -> Params:
    """Return what the task's training gives: SGD, momentum, clipping, class weights and the proximal term, by hand."""
    settings, labels = task.training, task.images.labels
    module = models.build(task.model, task.images.image_shape, task.num_classes, seed=0)
    models.load_parameters(module, task.global_params)
    weights, gradient = _as_vectors(module)
    velocity, anchor = torch.zeros_like(weights), weights.clone()
    counts = np.bincount(labels, minlength=task.num_classes)
    shares = np.where(counts > 0, len(labels) / (task.num_classes * np.maximum(counts, 1)), 0.0)
    class_weights = torch.from_numpy(shares.astype(np.float32))
    pixels = torch.from_numpy(np.ascontiguousarray(task.images.images.transpose(0, 2, 3, 1)))
    order = np.random.default_rng(derive_seed(task, "shuffle"))
    torch.manual_seed(derive_seed(task, "dropout") % 2**63)
    for _ in range(settings.local_epochs):
        permutation = order.permutation(len(labels))
        for start in range(0, len(labels), settings.batch_size):
            batch = torch.from_numpy(permutation[start : start + settings.batch_size])
            images = pixels[batch].to(torch.float32).div(127.5).sub(1.0).permute(0, 3, 1, 2)
            gradient.zero_()
            loss = functional.cross_entropy(module(images), torch.from_numpy(labels)[batch], weight=class_weights)
            loss.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                if task.proximal_mu > 0:
                    gradient.add_(weights, alpha=task.proximal_mu).sub_(anchor, alpha=task.proximal_mu)
                gradient.mul_(torch.clamp(settings.max_grad_norm / (torch.linalg.vector_norm(gradient) + 1e-6), max=1.0))
                velocity.mul_(settings.momentum).add_(gradient)
                weights.sub_(velocity, alpha=task.learning_rate)
    return models.parameters_of(module)


def _as_vectors(module: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay weights and gradients out in one vector each: each tensor from a multiple of 16, convolutions in channels_last memory."""
    parameters = list(module.parameters())
    starts = np.cumsum([0, *(-(-parameter.numel() // 16) * 16 for parameter in parameters)])
    vectors = torch.zeros(2, int(starts[-1]))
    for parameter, start in zip(parameters, starts[:-1], strict=True):
        views = []
        for vector in vectors:
            flat = vector[start : start + parameter.numel()]
            outputs, *rest = parameter.shape
            view = flat.view(outputs, *rest[1:], rest[0]).permute(0, 3, 1, 2) if len(rest) == 3 else flat.view(parameter.shape)
            views.append(view)
        views[0].copy_(parameter.data)
        parameter.data, parameter.grad = views
    return vectors[0], vectors[1]
